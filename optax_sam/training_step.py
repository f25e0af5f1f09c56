"""One training step for all methods, and accumulation over parts of a batch."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import chain_order, validation
from optax_sam.engine import devices, info
from optax_sam.engine.loss_view import LossView
from optax_sam.engine.partition import Leaves
from optax_sam.trees import tree_math


class StepOutput(NamedTuple):
  """What a step of `make_step` reports: `loss`, `aux` and `metrics`.

  `loss` is that of the clean pass, a scalar; `aux` what `loss_fn` returned
  beside it, None without `has_aux`; `metrics` those of `optax_sam.metrics`, an
  empty dict where `tx` has none.
  """

  loss: jax.Array
  aux: Any
  metrics: dict[str, Any]


def make_step(
  loss_fn: Callable[..., Any] | None,
  tx: optax.GradientTransformation,
  *,
  has_aux: bool = False,
  per_example_loss_fn: Callable[..., jax.Array] | None = None,
  accumulate_steps: int = 1,
  axis_name: Any = None,
) -> Callable[..., tuple[optax.Params, optax.OptState, StepOutput]]:
  """Builds the training step of an optimizer, with any method or none.

  A call takes the gradient, hands `tx.update` what the methods need, and
  applies the updates::

    step(params, opt_state, batch, *args) -> (params, opt_state, StepOutput)

  It is a pure function, to be jitted, scanned or mapped by the caller. Both
  passes of a step get the same `*args`: keys, statistics of batch norm, the
  memory of `saf_loss`. New statistics come as `aux`, from the clean pass. The
  first call checks `tx` as `optax_sam.check` does.

  Args:
    loss_fn: `loss_fn(params, batch, *args)` returns the scalar loss, or (loss,
      aux). None takes the mean of `per_example_loss_fn`, whose losses then
      serve `esam` and `k_sam`, too: that saves a forward pass.
    tx: the optimizer, such as `optax.chain(optax_sam.sam(), optax.sgd(0.1))`.
    has_aux: whether `loss_fn` returns (loss, aux).
    per_example_loss_fn: `per_example_loss_fn(params, batch, *args)` returns
      the loss of each example, shape (B,), for methods that need it.
    accumulate_steps: number k of parts that divides the batch. Both gradients
      are means over the parts, one part in memory at a time, and `tx` takes one
      step: for losses that are means, that of the whole batch. Part i has rows
      i, i + k, ..., so a batch that is split over devices stays there; its
      `aux` is at index i of a new axis 0. All parts get the same `*args`: keys
      that should differ belong to the batch. Losses of examples that are
      differentiated cost a forward pass more.
    axis_name: axis of `jax.pmap` or `jax.shard_map` whose devices hold
      different parts of the batch, as the method has it. The loss is averaged,
      `aux` is the device's. Without a method the gradient is averaged first.

  Returns:
    The step. Leaves that are not floating-point get gradients of 0.

  Raises:
    ValueError: here or when a step is traced, if an argument is wrong.

  >>> import jax, jax.numpy as jnp, optax, optax_sam
  >>> loss_fn = lambda w, batch: jnp.mean((batch['x'] * w - batch['y']) ** 2)
  >>> batch = {'x': jnp.arange(1.0, 5.0), 'y': 3 * jnp.arange(1.0, 5.0)}
  >>> tx = optax.chain(optax_sam.sam(rho=0.05), optax.sgd(0.1))
  >>> step = jax.jit(make_step(loss_fn, tx, accumulate_steps=2))
  >>> w = jnp.float32(0.0)
  >>> w, opt_state, output = step(w, tx.init(w), batch)
  >>> float(output.loss), round(float(w), 3)  # 0.1 * 15 * (3 + 0.05)
  (67.5, 4.575)
  """
  for name, function in (
    ('loss_fn', loss_fn or per_example_loss_fn),
    ('per_example_loss_fn', per_example_loss_fn or loss_fn),
  ):
    if not callable(function):
      msg = (
        f'{name} must be a function of (params, batch, *args), got '
        f'{function!r}. Only one of the two may be None.'
      )
      raise ValueError(msg)
  validation.check_choice('has_aux', has_aux, (True, False))
  if has_aux and loss_fn is None:
    msg = 'has_aux=True needs a loss_fn that returns (loss, aux), got None.'
    raise ValueError(msg)
  validation.check_static_integer('accumulate_steps', accumulate_steps)
  checked = []

  def step(
    params: optax.Params, opt_state: optax.OptState, batch: Any, *args: Any
  ) -> tuple[optax.Params, optax.OptState, StepOutput]:
    if not checked:
      chain_order.check(tx, params)
      _check_whole(tx, opt_state)
      checked.append(True)
    loss = _Loss(
      loss_fn, per_example_loss_fn, has_aux, batch, args, accumulate_steps
    )
    (value, aux), grads = loss.value_and_grad(params, axis_name)
    _check_axes(value, params, axis_name)
    value = devices.average(value, axis_name)
    if not list(chain_order.paths(chain_order.METHODS, opt_state, None)):
      grads = devices.average(grads, axis_name)
    extra = {'value': value, 'value_fn': loss.value_fn}
    if axis_name is None:
      extra['grad'] = grads  # else each device would search by its own
    if accumulate_steps > 1:
      extra['grad_fn'] = lambda p: loss.second(p, axis_name)
    if per_example_loss_fn is not None:
      extra |= {'per_example_value_fn': loss.losses, 'batch': batch}
    if loss_fn is None:
      extra['losses'], aux = aux, None
    updates, opt_state = _update(tx, grads, opt_state, params, extra)
    has_info = info.states(opt_state, info.SharpnessAwareState)
    metrics = info.metrics(opt_state) if has_info else {}
    params = optax.apply_updates(params, updates)
    return params, opt_state, StepOutput(value, aux, metrics)

  return step


class _Loss(NamedTuple):
  """The loss of one batch as a function of the parameters, part by part."""

  loss_fn: Any
  per_example_loss_fn: Any
  has_aux: bool
  batch: Any
  args: tuple[Any, ...]
  parts: int

  def of(self, params: optax.Params, batch: Any) -> tuple[jax.Array, Any]:
    """Returns the loss of some examples, and aux or their losses."""
    if self.loss_fn is None:
      losses = self.of_examples(params, batch)
      return jnp.mean(losses), losses
    found = self.loss_fn(params, batch, *self.args)
    if self.has_aux and not (isinstance(found, tuple) and len(found) == 2):
      msg = (
        f'loss_fn must return (loss, aux) with has_aux=True, got '
        f'{_types(found)}: return both, or leave has_aux out.'
      )
      raise ValueError(msg)
    value, aux = found if self.has_aux else (found, None)
    is_one = jax.tree_util.all_leaves([value]) and jnp.shape(value) == ()
    if not is_one or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
      msg = (
        f'loss_fn must return a real scalar, got {_types(value)}: write '
        f'has_aux=True if it returns more, jnp.mean(losses) if losses.'
      )
      raise ValueError(msg)
    return value, aux

  def of_examples(self, params: optax.Params, batch: Any) -> jax.Array:
    """Returns the losses of some examples."""
    losses = self.per_example_loss_fn(params, batch, *self.args)
    wanted, got = (_num_examples(batch),), jax.tree.map(jnp.shape, losses)
    if got != wanted:
      msg = (
        f'per_example_loss_fn must return one loss an example, shape {wanted}, '
        f'got shape {got}.'
      )
      raise ValueError(msg)
    return losses

  def value_and_grad(
    self, params: optax.Params, axis_name: Any, *, keep: int = 2
  ) -> tuple[Any, optax.Updates]:
    """Returns (loss, aux) of the batch, or (loss,), and the local gradient."""
    leaves = Leaves.of(params)
    w = devices.as_local(leaves.split(params), axis_name)

    def of_part(batch: Any) -> tuple[Any, optax.Updates]:
      whole = lambda w: self.of(leaves.join(w, params), batch)
      found, grads = jax.value_and_grad(whole, has_aux=True)(w)
      return found[:keep], grads

    def add(total: optax.Updates, batch: Any) -> tuple[optax.Updates, Any]:
      found, grads = of_part(batch)
      add = lambda x, y: x + y.astype(x.dtype)
      return jax.tree.map(add, total, grads), found

    if self.parts == 1:
      found, grads = of_part(self.batch)
    else:
      total, found = jax.lax.scan(add, tree_math.zeros_like(w), self.split())
      mean = lambda x, y: (x / self.parts).astype(y.dtype)
      grads = jax.tree.map(mean, total, w)
      rest = map(_joined, found[1:]) if self.loss_fn is None else found[1:]
      found = jnp.mean(found[0]), *rest
    return found, leaves.join(grads, jax.tree.map(jnp.zeros_like, params))

  def second(self, params: optax.Params, axis_name: Any) -> tuple[Any, Any]:
    """Returns (loss, gradient) at the point that a method asks for."""
    (value,), grads = self.value_and_grad(params, axis_name, keep=1)
    return value, grads

  def value_fn(
    self,
    params: optax.Params,
    # What Optax's line searches see in `update` must be arguments here.
    grad_fn: Any = None,
    per_example_value_fn: Any = None,
    batch: Any = None,
    losses: Any = None,
  ) -> jax.Array:
    """Returns the loss of the batch."""
    del grad_fn, per_example_value_fn, batch, losses
    if self.parts == 1:
      return self.of(params, self.batch)[0]
    part = jax.checkpoint(lambda batch: self.of(params, batch)[0])
    return jnp.mean(jax.lax.map(part, self.split()))

  def losses(self, params: optax.Params, batch: Any) -> jax.Array:
    """Returns the losses of examples, at most a part of them at a time."""
    of = lambda batch: self.of_examples(params, batch)
    rows, size = _num_examples(batch), _num_examples(self.batch) // self.parts
    if self.parts == 1 or rows <= size:
      return of(batch)
    whole = rows - rows % size
    head = jax.tree.map(lambda x: x[:whole], batch)
    found = jax.lax.map(jax.checkpoint(of), _split(head, whole // size))
    if whole == rows:
      return _joined(found)
    rest = of(jax.tree.map(lambda x: x[whole:], batch))
    return jnp.concatenate([_joined(found), rest])

  def split(self) -> Any:
    """Stacks the parts of the batch."""
    rows = _num_examples(self.batch)
    if not rows or rows % self.parts:
      msg = (
        f'accumulate_steps must divide the batch, got accumulate_steps='
        f'{self.parts} for {rows} examples: pass a divisor, or drop examples.'
      )
      raise ValueError(msg)
    return _split(self.batch, self.parts)


def _types(tree: Any) -> str:
  name = lambda x: str(getattr(x, 'aval', type(x).__name__))
  return str(jax.tree.map(name, tree))


def _num_examples(batch: Any) -> int:
  return LossView(per_example_value_fn=jnp.zeros, batch=batch).num_examples


def _split(batch: Any, parts: int) -> Any:
  """Stacks the rows i, i + parts, ... for each i from 0 on."""

  def split(leaf: Any) -> jax.Array:
    leaf = jnp.asarray(leaf)
    size = leaf.shape[0] // parts
    if size % (jax.typeof(leaf).sharding.mesh.size or 1):
      leaf = devices.whole(leaf)  # or JAX refuses where axes are explicit
    return leaf.reshape(size, parts, *leaf.shape[1:]).swapaxes(0, 1)

  return jax.tree.map(split, batch)


def _joined(stacked: jax.Array) -> jax.Array:
  """Undoes `_split` for one number an example."""
  return stacked.swapaxes(0, 1).reshape(stacked.size)


def _update(tx: Any, grads: Any, state: Any, params: Any, extra: Any) -> Any:
  takes = inspect.signature(tx.update).parameters.values()
  if not any(x.kind is inspect.Parameter.VAR_KEYWORD for x in takes):
    tx = optax.with_extra_args_support(tx)
  needed = 'per_example_value_fn'
  try:
    return tx.update(grads, state, params, **extra)
  except ValueError as error:
    if needed in extra or needed not in str(error):
      raise
    msg = (
      'per_example_loss_fn must be given, since a method of tx needs the '
      'losses of examples: write make_step(None, tx, per_example_loss_fn=f), '
      'where f(params, batch, *args) returns one loss an example, shape (B,).'
    )
    raise ValueError(msg) from error


def _check_axes(value: Any, params: Any, axis_name: Any) -> None:
  """Raises if devices hold other examples over an axis that isn't named."""
  mesh = jax.sharding.get_abstract_mesh()
  named = axis_name if isinstance(axis_name, tuple) else (axis_name,)
  axes = [x for x in mesh.manual_axes if mesh.shape[x] > 1 and x not in named]
  varies = lambda x, over: over in jax.typeof(x).manual_axis_type.varying
  for axis in [] if axis_name == () else axes:
    known = varies(jax.lax.axis_index(axis), axis)
    apart = all(varies(x, axis) for x in jax.tree.leaves(params))
    if not known or (varies(value, axis) and not apart):
      msg = (
        f'axis_name must name the axes of jax.pmap or jax.shard_map that the '
        f'batch is split over, got axis_name={axis_name!r} inside {axis!r}: '
        f'write axis_name={axis!r} here and in the method, or axis_name=() '
        f'where devices train independently.'
      )
      raise ValueError(msg)


def _check_whole(tx: Any, opt_state: Any) -> None:
  """Raises if an optimizer is right for other training steps only."""
  methods = list(chain_order.paths(chain_order.METHODS, opt_state, tx.update))
  for *around, node in methods:
    alone = all(len(node.parts) == node.position + 1 for node in around)
    if alone and node.name == 'SharpnessAwareState':
      msg = (
        'tx must end with a base optimizer, got a method alone, whose update '
        'is a gradient: write optax.chain(method, optax.sgd(0.1)).'
      )
      raise ValueError(msg)
  kinds = (optax.MultiStepsState,)
  for path in chain_order.paths(kinds, opt_state, tx.update) if methods else ():
    every = chain_order.held(path[-1].function).get('_every_k_schedule')
    with jax.ensure_compile_time_eval():
      accumulates = every is not None and bool(every(0) > 1)
    if accumulates:
      msg = (
        'tx must not have optax.MultiSteps beside a method: around it the '
        'descent is by the last batch alone, and behind it the counts, periods '
        'and schedules of the method run k times too fast. Leave it out, and '
        'write make_step(..., accumulate_steps=k) for a batch of k parts.'
      )
      raise ValueError(msg)
