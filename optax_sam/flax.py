"""Sharpness-aware steps in Flax: a linen train state, and functions for NNX.

Both passes of a step must see the same dropout mask, and only the first may
update the running statistics of batch norm. Needs `optax-sam[flax]`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Self

import optax
from flax import nnx
from flax.training import train_state

from optax_sam.batch_norm import reestimate_batch_norm
from optax_sam.engine.loss_view import GradFn, PerExampleValueFn, ValueFn

__all__ = [
  'TrainState',
  'nnx_per_example_value_fn',
  'nnx_value_fn',
  'reestimate_batch_norm',
]


class TrainState(train_state.TrainState):
  """Flax's train state, with a step that forwards extra arguments to `tx`.

  For batch norm, subclass it with a field `batch_stats`, and give the new ones
  to `apply_gradients`. `value_fn` must use the dropout key of the first pass.

  >>> import jax, jax.numpy as jnp, optax, optax_sam
  >>> state = TrainState.create(
  ...   apply_fn=lambda params: jnp.sum(params['w'] ** 2),
  ...   params={'w': jnp.array([3.0, 4.0])},
  ...   tx=optax.chain(optax_sam.sam(rho=0.5), optax.sgd(0.1)),
  ... )
  >>> grads = jax.grad(state.apply_fn)(state.params)
  >>> state = state.apply_gradients(grads=grads, value_fn=state.apply_fn)
  >>> [round(x, 3) for x in state.params['w'].tolist()]  # w - 0.2 * 1.1 * w
  [2.34, 3.12]
  """

  def apply_gradients(
    self,
    *,
    grads: optax.Updates,
    value_fn: ValueFn | None = None,
    grad_fn: GradFn | None = None,
    per_example_value_fn: PerExampleValueFn | None = None,
    batch: Any = None,
    extra_args: Mapping[str, Any] | None = None,
    **changes: Any,
  ) -> Self:
    """Takes one step with any `tx`, even one without extra arguments.

    Args:
      grads: unperturbed gradients, like `params`.
      value_fn: from the parameters to the scalar loss of the batch.
      grad_fn: from the parameters to its gradient, or to (loss, gradient).
      per_example_value_fn: from the parameters and a batch to losses (B,).
      batch: a pytree whose leaves have the examples on axis 0.
      extra_args: further extra arguments of `tx`, such as `{'value': loss}`
        for `optax.contrib.reduce_on_plateau`.
      **changes: fields to replace, such as `batch_stats`.

    Returns:
      The state after the step.
    """
    fields = {field.name for field in dataclasses.fields(self)}
    for name in changes.keys() - fields:
      msg = (
        f'{name} must be a field of {type(self).__name__} to be replaced; '
        f'an extra argument for tx goes into extra_args={{{name!r}: ...}}.'
      )
      raise ValueError(msg)
    own = {'value_fn': value_fn, 'grad_fn': grad_fn, 'batch': batch}
    own['per_example_value_fn'] = per_example_value_fn
    given = dict(extra_args or {})
    for name in given.keys() & own.keys():
      msg = (
        f'extra_args must hold further arguments only, got {name!r}: write '
        f'apply_gradients(grads=grads, {name}=...).'
      )
      raise ValueError(msg)
    # None is left out, so that a method that needs the argument says so.
    given |= {name: value for name, value in own.items() if value is not None}
    tx = optax.with_extra_args_support(self.tx)
    update = functools.partial(tx.update, **given)
    # The step itself is that of Flax, which handles 8-bit floats.
    bound = self.replace(tx=optax.GradientTransformation(tx.init, update))
    changes = {'tx': self.tx, **changes}
    return super(TrainState, bound).apply_gradients(grads=grads, **changes)


def nnx_value_fn(
  model: nnx.Module,
  loss_fn: Callable[..., Any],
  *args: Any,
  wrt: Any = nnx.Param,
  **kwargs: Any,
) -> ValueFn:
  """Returns the loss of an NNX model as a function of its parameters.

  Call it before the first pass. The function starts from the running
  statistics and the counters of random streams at that moment, so that both
  passes see one dropout mask, and drops whatever `loss_fn` changes::

    value_fn = optax_sam.flax.nnx_value_fn(model, loss_fn, batch)
    value, grads = nnx.value_and_grad(loss_fn)(model, batch)
    optimizer.update(model, grads, value_fn=value_fn)

  For logs write `optax_sam.metrics(nnx.as_pure(optimizer.opt_state))`.

  Args:
    model: the model, in training mode.
    loss_fn: from (model, *args, **kwargs) to the loss, or to (loss, ...).
    *args: further arguments of `loss_fn`.
    wrt: filter of the variables that are parameters, as in `nnx.Optimizer`.
    **kwargs: further keyword arguments of `loss_fn`.

  Returns:
    A function from the parameters to the scalar loss.

  >>> import jax.numpy as jnp
  >>> model = nnx.Linear(2, 1, use_bias=False, rngs=nnx.Rngs(0))
  >>> model.kernel[...] = jnp.array([[3.0], [4.0]])
  >>> value_fn = nnx_value_fn(model, lambda m: jnp.sum(m.kernel[...] ** 2))
  >>> float(value_fn(nnx.as_pure(nnx.state(model, nnx.Param))))
  25.0
  """
  return _of_params(model, loss_fn, wrt, args, kwargs)


def nnx_per_example_value_fn(
  model: nnx.Module,
  losses_fn: Callable[..., Any],
  *args: Any,
  wrt: Any = nnx.Param,
  **kwargs: Any,
) -> PerExampleValueFn:
  """Returns the per-example losses of an NNX model, for methods that pick some.

  Call it before the first pass, like `nnx_value_fn`. A part of a batch has
  another dropout mask than the batch, as its shape differs. Write
  `optimizer.update(model, grads, per_example_value_fn=losses, batch=batch)`.

  Args:
    model: the model, in training mode.
    losses_fn: from (model, batch, *args, **kwargs) to losses or (losses, ...).
    *args: further arguments of `losses_fn`.
    wrt: filter of the variables that are parameters, as in `nnx.Optimizer`.
    **kwargs: further keyword arguments of `losses_fn`.

  Returns:
    A function from the parameters and a batch to its losses, shape (B,).

  >>> import jax.numpy as jnp
  >>> model = nnx.Linear(2, 1, use_bias=False, rngs=nnx.Rngs(0))
  >>> losses = nnx_per_example_value_fn(model, lambda m, x: m(x)[:, 0])
  >>> params = nnx.as_pure(nnx.state(model, nnx.Param))
  >>> losses(params, jnp.zeros((3, 2))).tolist()
  [0.0, 0.0, 0.0]
  """
  return _of_params(model, losses_fn, wrt, args, kwargs)


def _of_params(
  model: nnx.Module, loss_fn: Any, wrt: Any, args: Any, kwargs: Any
) -> Callable[..., Any]:
  """Returns the loss of the model as it is now, from parameters and a batch."""
  graph, _, others = nnx.split(model, wrt, ...)
  # Arrays: the variables are the model's, and the first pass changes them.
  others = nnx.as_pure(others)

  def value_fn(params: optax.Params, *batch: Any) -> Any:
    current = nnx.merge(graph, params, others)
    found = loss_fn(current, *batch, *args, **kwargs)
    return found[0] if isinstance(found, tuple) else found

  return value_fn
