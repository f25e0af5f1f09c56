"""One training step for all methods."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from optax_sam import chain_order, validation
from optax_sam.engine import devices, info, manual_axes
from optax_sam.engine.batch_loss import BatchLoss
from optax_sam.engine.loss_view import LossView
from optax_sam.engine.partition import Leaves


class StepOutput(NamedTuple):
  """Output of a step of `make_step`: `loss`, `aux` and `metrics`.

  `loss` is the scalar loss at the unperturbed parameters, `aux` the auxiliary
  output of `loss_fn` there, None without `has_aux`; `metrics` is the dict of
  `optax_sam.metrics`, empty if `tx` has no method.
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
) -> 'Callable[..., tuple[optax.Params, optax.OptState, StepOutput]]':
  """Builds the training step of an optimizer, with any method or none.

  A step computes the gradient, passes the functions that methods need to
  `tx.update`, and applies the updates::

    step(params, opt_state, batch, *args) -> (params, opt_state, StepOutput)

  It is a pure function, to be jitted, scanned or mapped by the caller. Both
  passes of a step get the same `*args`: keys, statistics of batch norm, the
  state of `saf_loss`. New statistics are returned as `aux`, from the pass at
  the unperturbed parameters. The first call checks `tx` by `optax_sam.check`.

  Args:
    loss_fn: `loss_fn(params, batch, *args)` returns the scalar loss, or
      (loss, aux). None uses the mean of `per_example_loss_fn`, whose losses
      `esam` and `k_sam` then reuse: that saves a forward pass.
    tx: the optimizer, such as `optax.chain(optax_sam.sam(), optax.sgd(0.1))`.
    has_aux: whether `loss_fn` returns (loss, aux).
    per_example_loss_fn: `per_example_loss_fn(params, batch, *args)` returns
      the loss of each example, shape (B,), for methods that need it.
    accumulate_steps: number k of parts that divides the batch. Both gradients
      are means over the parts, computed one by one to save memory, and `tx`
      takes one step: for losses that are means, that of the whole batch. Part
      i has rows i, i + k, ..., so that a batch stays split over devices; its
      `aux` is at index i of a new axis 0. All parts get the same `*args`: put
      keys that should differ into the batch. Methods that differentiate
      per-example losses cost one more forward pass.
    axis_name: axis of `jax.pmap` or `jax.shard_map` whose devices have
      different parts of the batch, the same as in the method. The loss is
      averaged, `aux` is local. Without a method gradients are averaged too.

  Returns:
    The step. Leaves that are not floating-point get gradients of 0.

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
    manual_axes.check_bound(axis_name)
    if not checked:
      _check_state(tx, opt_state, params)
      chain_order.check(tx, params)
      _check_whole(tx, opt_state, params)
      _check_axis(tx, opt_state, axis_name)
      checked.append(True)
    loss = BatchLoss(
      loss_fn, per_example_loss_fn, has_aux, batch, args, accumulate_steps
    )
    (value, aux), grads = loss.value_and_grad(params, axis_name)
    devices.check_loss(value, axis_name, 'loss_fn')
    leaves = Leaves.of(params)
    view = LossView(value_fn=loss.value_fn, leaves=leaves, params=params)
    manual_axes.check(view, leaves.split(grads), axis_name)
    value = devices.average(value, axis_name)
    methods = list(chain_order.paths(chain_order.METHODS, opt_state, tx.update))
    # A method averages by itself, except inside of `alternating`.
    if all(_alternates(path) for path in methods):
      grads = devices.average(grads, axis_name)
    extra = {'value': value, 'value_fn': loss.value_fn}
    if axis_name is None:
      extra['grad'] = grads  # else line searches would differ by device
    if accumulate_steps > 1:
      extra['grad_fn'] = functools.partial(loss.second, axis_name=axis_name)
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


def _alternates(path: tuple[chain_order.Node, ...]) -> bool:
  return any(node.name == 'AlternatingState' for node in path)


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
      'per_example_loss_fn must be given, since a method of tx needs '
      'per-example losses: write make_step(None, tx, per_example_loss_fn=f), '
      'where f(params, batch, *args) returns one loss per example, shape (B,).'
    )
    raise ValueError(msg) from error


def _check_state(tx: Any, opt_state: Any, params: Any) -> None:
  """Raises unless a state has the structure of the one that `init` returns."""
  if not isinstance(tx, optax.GradientTransformation):
    return  # another check raises
  wanted = jax.tree.structure(jax.eval_shape(lambda: tx.init(params)))
  if jax.tree.structure(opt_state) != wanted:
    msg = (
      f'opt_state must be tx.init(params), or what the last step of the same '
      f'tx returned, got a {type(opt_state).__name__} of another structure: '
      f'write step(params, opt_state, batch).'
    )
    raise ValueError(msg)


def _check_axis(tx: Any, opt_state: Any, axis_name: Any) -> None:
  """Raises if a method averages over no device, but the step over some."""
  paths = chain_order.paths(chain_order.METHODS, opt_state, tx.update)
  for path in paths if axis_name else ():
    given = chain_order.arguments(path[-1].function)
    if given.get('axis_name') == () and not _alternates(path):
      msg = (
        f'axis_name must be that of the method, got {axis_name!r} for a method '
        f'with axis_name=(), which does not average gradients: give both the '
        f'same.'
      )
      raise ValueError(msg)


def _check_whole(tx: Any, opt_state: Any, params: Any) -> None:
  """Raises if an optimizer is correct in other training steps only."""
  methods = list(chain_order.paths(chain_order.METHODS, opt_state, tx.update))
  for *around, node in methods:
    alone = all(chain_order.adds_nothing(node, params) for node in around)
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
      times = (0, np.iinfo(np.int32).max)  # it may be a schedule
      accumulates = every is not None and any(every(t) > 1 for t in times)
    if accumulates:
      msg = (
        'tx must not have optax.MultiSteps with a method: if MultiSteps wraps '
        'the method, the perturbed gradient is of the last batch only; after '
        'the method, its step counts, periods and schedules run k times too '
        'fast. Leave it out, and write make_step(..., accumulate_steps=k).'
      )
      raise ValueError(msg)
