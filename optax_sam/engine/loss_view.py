"""The loss of the current batch, built from the extra arguments of `update`."""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import optax

from optax_sam.engine import devices
from optax_sam.engine.extra_arguments import bound
from optax_sam.engine.gradient import gradient_like
from optax_sam.engine.partition import Leaves, Mask, name_of

ValueFn = Callable[[optax.Params], jax.Array]
GradFn = Callable[[optax.Params], Any]
PerExampleValueFn = Callable[[optax.Params, Any], jax.Array]

_DROPPED = (
  '\nIf you passed it, a wrapper has dropped it. These forward no extra '
  'arguments: the TrainState of Flax (optax_sam.flax.TrainState does), '
  'optax.lookahead, optax.contrib.split_real_and_imaginary, and '
  'optax.MultiSteps(...).gradient_transformation(). Place the method before '
  'them, as in optax.chain(method, wrapper(base)), or leave out the two of '
  'optax that change the parameters, lookahead and '
  'split_real_and_imaginary.'
)


@dataclasses.dataclass(frozen=True)
class LossView:
  """The loss of one batch as a function of some leaves of the parameters.

  Attributes:
    value_fn: from the parameters to the scalar loss of the batch.
    grad_fn: from the parameters to its gradient, or to (loss, gradient).
    per_example_value_fn: from the parameters and a batch to its (B,) losses; 0
      for rows of padding.
    batch: a pytree whose leaves have the examples on axis 0.
    clean_losses: (B,) losses at the unperturbed parameters, if the training
      step has computed them already.
    axis_name: device axis over which gradients stay local.
    leaves: which leaves the functions below take and return.
    params: the parameters with all their leaves, as the functions of the
      training step take them.
  """

  value_fn: ValueFn | None = None
  grad_fn: GradFn | None = None
  per_example_value_fn: PerExampleValueFn | None = None
  batch: Any = None
  clean_losses: jax.Array | None = None
  axis_name: Any = None
  leaves: Leaves = Leaves()  # noqa: RUF009
  params: optax.Params | None = None

  @classmethod
  def open(
    cls,
    params: optax.Params,
    updates: optax.Updates,
    given: Mapping[str, Any],
    *,
    mask: Mask = None,
    axis_name: Any = None,
  ) -> 'LossView':
    """Returns the view of the arguments of one call of `update`.

    The functions in `given`, the extra arguments, get those that they name.
    """
    view = cls(
      value_fn=bound('value_fn', given, 1),
      grad_fn=bound('grad_fn', given, 1),
      per_example_value_fn=bound('per_example_value_fn', given, 2),
      batch=given.get('batch'),
      clean_losses=given.get('losses'),
      axis_name=axis_name,
      leaves=Leaves.of(params, mask, updates),
      params=params,
    )
    if view.clean_losses is not None:
      view.check_losses()
    return view

  def check_given(self, *, examples: bool = False) -> None:
    """Raises if there is no function to differentiate, or no examples."""
    if examples:
      _ = self.num_examples
    if self.grad_fn is not None or self.value_fn is not None:
      return
    if self.per_example_value_fn is not None and self.batch is not None:
      return
    msg = (
      'the perturbed gradient needs a function to differentiate; pass one to '
      'update, for example\n'
      '  value_fn = lambda p: loss(p, batch)\n'
      '  updates, opt_state = tx.update(\n'
      '    grads, opt_state, params, value_fn=value_fn)'
    )
    raise ValueError(msg + _DROPPED)

  def value_and_grad(
    self, params: optax.Params
  ) -> tuple[jax.Array | None, optax.Updates]:
    """Returns the loss, None if it is unknown, and its gradient."""
    params = devices.as_local(params, self.axis_name)
    if self.grad_fn is not None:
      whole = self._whole(params)
      return _split_value(self.grad_fn(whole), whole, self.leaves)
    if self.value_fn is not None:
      value_fn = _as_scalar(self.value_fn)
      found = jax.value_and_grad(lambda p: value_fn(self._whole(p)))(params)
      devices.check_loss(found[0], self.axis_name)
      return found
    self.check_given()
    return jax.value_and_grad(self._mean)(params)

  def loss_and_grad(
    self, params: optax.Params, method: str
  ) -> tuple[jax.Array, optax.Updates]:
    """Returns the loss and its gradient for a method that needs both."""
    value, gradient = self.value_and_grad(params)
    value = self.value(params) if value is None else value
    if value is None:
      msg = (
        f'{method} needs the loss and its gradient: let grad_fn return both, '
        f'as jax.value_and_grad(loss) does, or pass value_fn as well\n'
        f'  updates, opt_state = tx.update(\n'
        f'    grads, opt_state, params, value_fn=value_fn, grad_fn=grad_fn)'
      )
      raise ValueError(msg)
    return value, gradient

  def value(self, params: optax.Params) -> jax.Array | None:
    """Returns the loss, None if only a gradient function was given."""
    params = devices.as_local(params, self.axis_name)
    if self.value_fn is not None:
      return _as_scalar(self.value_fn)(self._whole(params))
    if self.per_example_value_fn is not None and self.batch is not None:
      return self._mean(params)
    return None

  def _whole(self, params: optax.Params) -> optax.Params:
    return self.leaves.join(params, self.params)

  def _mean(self, params: optax.Params) -> jax.Array:
    return jnp.mean(self.losses(params))

  def losses(self, params: optax.Params) -> jax.Array:
    """Returns the loss of every example of the batch, shape (B,)."""
    if self.per_example_value_fn is None or self.batch is None:
      self._needs_examples()
    wanted = (self.num_examples,)  # checks the batch before it is used
    losses = self.per_example_value_fn(self._whole(params), self.batch)
    if _shapes(losses) != wanted:
      msg = (
        f'per_example_value_fn must return one loss per example, shape '
        f'{wanted}, got shape {_shapes(losses)}.'
      )
      raise ValueError(msg)
    _check_real('per_example_value_fn', losses)
    return losses

  def losses_before(self, params: optax.Params) -> jax.Array:
    """Returns the losses at the unperturbed parameters, given or computed."""
    if self.clean_losses is None:
      return self.losses(params)
    return jnp.asarray(self.clean_losses)

  def check_losses(self) -> None:
    """Raises unless there is one given loss for each example."""
    found, wanted = _shapes(self.clean_losses), '(B,)'
    # A batch without an axis of examples is not used, so it is not checked.
    with contextlib.suppress(ValueError):
      wanted = f'({_num_rows(self.batch)},)'
    is_one_each = isinstance(found, tuple) and len(found) == 1
    if str(found) != wanted and not (wanted == '(B,)' and is_one_each):
      msg = (
        f'losses must hold one loss for each example of batch, shape {wanted}, '
        f'got shape {found}: pass those at params, or leave it out.'
      )
      raise ValueError(msg)

  @functools.cached_property
  def num_examples(self) -> int:
    """Number of examples of the batch."""
    if self.per_example_value_fn is None or self.batch is None:
      self._needs_examples()
    return _num_rows(self.batch)

  def rows(self, index: jax.Array | slice) -> 'LossView':
    """Returns a view of the mean loss over some examples, gathered first."""
    _ = self.num_examples  # checks the batch
    # A NumPy array can't be indexed by a traced array.
    gather = lambda leaf: jnp.asarray(devices.replicated(leaf))[index]
    picked = jax.tree.map(gather, self.batch)
    return self.on(jax.tree.map(devices.split_like, picked, self.batch))

  def on(self, batch: Any) -> 'LossView':
    """Returns a view of the mean loss over another batch."""
    return dataclasses.replace(
      self, value_fn=None, grad_fn=None, batch=batch, clean_losses=None
    )

  def of_movable_leaves(self) -> 'LossView':
    """Returns a view as a function of the leaves that may be perturbed."""
    return dataclasses.replace(self, leaves=self.leaves.only_movable())

  def _needs_examples(self) -> NoReturn:
    msg = (
      'this method needs per-example losses; pass a function of them to '
      'update, for example\n'
      '  updates, opt_state = tx.update(\n'
      '    grads, opt_state, params,\n'
      '    per_example_value_fn=f, batch=batch)\n'
      'where f(params, batch) returns one loss per example, shape (B,)'
    )
    raise ValueError(msg + _DROPPED)


def _num_rows(batch: Any) -> int:
  paths = jax.tree_util.tree_leaves_with_path(batch)
  shapes = {name_of(path): jnp.shape(leaf) for path, leaf in paths}
  if () in shapes.values() or len({x[0] for x in shapes.values()}) != 1:
    first = dict(itertools.islice(shapes.items(), 10))
    msg = (
      f'batch must be a pytree whose leaves all have the examples on axis '
      f'0, got leaves of shapes {first}: turn lists into arrays, and close '
      f'over what belongs to no example.'
    )
    raise ValueError(msg)
  rows = next(iter(shapes.values()))[0]
  if not rows:
    msg = f'batch must hold an example, got leaves of shapes {shapes}.'
    raise ValueError(msg)
  return rows


def _as_scalar(value_fn: ValueFn) -> ValueFn:
  def scalar(params: optax.Params) -> jax.Array:
    value = value_fn(params)
    if not _is_scalar(value):
      got = _shapes(value)
      msg = (
        f'value_fn must return a scalar, got shape {got}: write '
        f'value_fn=lambda p: loss(p, batch)[0] if the loss comes with more.'
      )
      raise ValueError(msg)
    if not isinstance(value, float):
      _check_real('value_fn', value)
    return value

  return scalar


def _check_real(name: str, value: Any) -> None:
  dtype = getattr(value, 'dtype', type(value).__name__)
  if isinstance(dtype, str) or not jnp.issubdtype(dtype, jnp.floating):
    msg = f'{name} must return real floating-point numbers, got {dtype}.'
    raise ValueError(msg)


def _split_value(
  result: Any, params: optax.Params, leaves: Leaves
) -> tuple[jax.Array | None, optax.Updates]:
  """Returns (loss or None, gradient of the leaves of the method)."""
  choices, problem = [(None, result)], ''
  if isinstance(result, tuple) and len(result) == 2 and _is_scalar(result[0]):
    choices.append(result)
  for value, gradient in choices:
    try:
      whole = gradient_like(gradient, params, 'the gradient', leaves.split)
      return value, leaves.split(whole)
    except ValueError as error:
      problem = error
  msg = (
    f'grad_fn must return a gradient like the parameters, or (loss, '
    f'gradient), got shapes {_shapes(result)} for parameters of shapes '
    f'{_shapes(params)}: {problem} With has_aux=True, leave aux '
    f'out:\n'
    f'  def grad_fn(p):\n'
    f'    (value, _), grads = jax.value_and_grad(loss, has_aux=True)(p)\n'
    f'    return value, grads'
  )
  raise ValueError(msg)


def _is_scalar(value: Any) -> bool:
  return jax.tree_util.all_leaves([value]) and jnp.shape(value) == ()


def _shapes(tree: Any) -> Any:
  return jax.tree.map(jnp.shape, tree)
