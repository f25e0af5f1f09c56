"""The extra arguments of `update`, and the functions that receive them."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import optax

from optax_sam.engine.models import OF_MODELS, explained

# Arguments that define the loss.
ARGUMENTS = ('value_fn', 'grad_fn', 'per_example_value_fn', 'batch', 'losses')

# Never forwarded, as in Optax's line searches.
_NEVER_FORWARDED = ('value_fn', 'value', 'grad')

_BY_POSITION = (
  inspect.Parameter.POSITIONAL_ONLY,
  inspect.Parameter.POSITIONAL_OR_KEYWORD,
)
_BY_NAME = (
  inspect.Parameter.POSITIONAL_OR_KEYWORD,
  inspect.Parameter.KEYWORD_ONLY,
)


def _named(signature: inspect.Signature) -> set[str]:
  """Returns the names of arguments that can be given by name."""
  return {x.name for x in signature.parameters.values() if x.kind in _BY_NAME}


def hide_arguments(
  base: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
  """Hides the arguments of the methods from a base optimizer.

  The line searches of Optax, also that of `optax.lbfgs`, refuse every extra
  argument that `value_fn` doesn't take. Wrap them if a method placed before
  them needs `per_example_value_fn`, `batch`, `losses`, `grad_fn` or `ascend`.

  Args:
    base: the optimizer to place after a method in `optax.chain`.

  Returns:
    The same optimizer. Its `update` forwards only other arguments, and those
    that `value_fn` names.

  >>> import jax, jax.numpy as jnp, optax, optax_sam
  >>> tx = optax.chain(
  ...   optax_sam.k_sam(ascent=1, descent=2), hide_arguments(optax.lbfgs())
  ... )
  >>> losses = lambda w, x: (w - x) ** 2
  >>> loss = lambda w: jnp.mean(losses(w, x))
  >>> x, w = jnp.array([1.0, 3.0]), jnp.float32(0.0)
  >>> value, grad = jax.value_and_grad(loss)(w)
  >>> updates, _ = tx.update(
  ...   grad,
  ...   tx.init(w),
  ...   w,
  ...   value=value,
  ...   grad=grad,
  ...   value_fn=loss,
  ...   per_example_value_fn=losses,
  ...   batch=x,
  ... )
  >>> bool(loss(w + updates) < value)
  True
  """
  base = optax.with_extra_args_support(base)
  ours = {*ARGUMENTS, 'ascend'} - {'value_fn'}

  def update(
    updates: Any, state: Any, params: Any = None, **extra_args: Any
  ) -> tuple[Any, Any]:
    value_fn = extra_args.get('value_fn')
    named = _named(inspect.signature(value_fn)) if value_fn else ()
    return base.update(
      updates,
      state,
      params,
      **{x: y for x, y in extra_args.items() if x not in ours or x in named},
    )

  return optax.GradientTransformationExtraArgs(base.init, update)


def bound(
  name: str, given: Mapping[str, Any], positions: int
) -> Callable[..., Any] | None:
  """Binds to a given function the extra arguments that it names.

  It is called with a number of arguments by position.
  """
  function = given.get(name)
  if function is None:
    return None
  if not callable(function):
    msg = (
      f'{name} must be a function of the parameters, got {function!r}: pass '
      f'the function itself, {name}=lambda p: ..., not its result.'
    )
    raise ValueError(msg)
  try:
    signature = inspect.signature(function)
  except (TypeError, ValueError):  # some built-in functions
    return function
  parameters = list(signature.parameters.values())
  ours = [x.name for x in parameters if x.kind in _BY_POSITION][:positions]
  takes_all = any(x.kind is inspect.Parameter.VAR_KEYWORD for x in parameters)
  foreign = {*ARGUMENTS, 'ascend', 'value', 'grad'}
  named = _named(signature) - {*ours, *_NEVER_FORWARDED}
  more = {
    key: value
    for key, value in given.items()
    if key in named or (takes_all and key not in (*foreign, *ours))
  }
  try:
    signature.bind(*[None] * positions, **more)
  except TypeError as error:
    call = ('params', 'params, batch')[positions - 1]
    msg = (
      f'{name} is called as {name}({call}), with the extra arguments of update '
      f'that it names; its signature is {signature}: {error}. Pass the missing '
      f'ones to update by name, or write {name}=lambda {call}: ... . '
      f'{OF_MODELS}'
    )
    if name == 'grad_fn':
      msg += (
        ' The grad_fn of optax.contrib.sam has the number of the step as its '
        'second argument: leave that out.'
      )
    raise ValueError(msg) from None
  return explained(functools.partial(function, **more) if more else function)
