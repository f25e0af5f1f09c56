"""SAF: an auxiliary loss that compares logits with those of earlier epochs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_sam import validation
from optax_sam.trees import array_types, divergence


class SafState(NamedTuple):
  """State of `saf_loss`: `logits` (examples, lag, classes), and `filled`.

  Epoch e has slot `e % lag`; `filled` (examples, lag) is True once written.
  """

  logits: jax.Array
  filled: jax.Array


class SafLoss(NamedTuple):
  """The functions of `saf_loss`; all of them are pure.

  `init(num_examples, num_classes)` returns an empty state. `loss` returns the
  auxiliary loss, and `update` the next state, both from `(logits, state, ids,
  epoch, is_example=None)`: `logits` of the step, (B, classes), `ids` of its
  examples, integers (B,) from 0 on, each at most once, the `epoch`, from 0 on,
  and `is_example`, bool (B,), False for padding.
  """

  init: Callable[[int, int], SafState]
  loss: Callable[..., jax.Array]
  update: Callable[..., SafState]


def saf_loss(
  temperature: float = 5.0,
  weight: float = 0.3,
  *,
  lag: int = 3,
  start_epoch: int = 5,
  table_dtype: Any = None,
  axis_name: Any = None,
) -> SafLoss:
  r"""Sharpness-aware training for free (SAF): agreement with earlier epochs.

  From epoch `start_epoch` on, SAF adds an auxiliary loss :math:`D`. It
  penalizes the divergence from an example's logits of `lag` epochs before,
  which are in a table.

  .. math::
    y_i &= \text{table}[i, e \bmod \text{lag}] \\
    D &= (\lambda \tau^2 / B) \sum_i \text{KL}(
      \text{softmax}(y_i / \tau) \,\|\, \text{softmax}(z_i / \tau)) \\
    \text{table}[i, e \bmod \text{lag}] &\leftarrow z_i

  :math:`z_i` are the logits of example i in epoch :math:`e`, and :math:`B` is
  the number of rows of the batch. The sum is over the examples whose slot was
  written. An example that misses an epoch, as in an incomplete last batch, has
  a target that is older by a multiple of `lag`. Logits that are not finite are
  not written. An id out of range is an error, except under jit, where it has no
  target and is not written. Don't mix examples, as mixup does.

  **Devices.** Split the state along its first axis: by `P('data')`, in a
  `NamedSharding` under `jax.jit` or in the specs of `jax.shard_map`. With n
  devices and `n * m` examples (round up), device d owns the examples `d * m` to
  `(d + 1) * m - 1`; a batch may have any. The table is never sent: `jax.jit`
  gathers ids and logits of the batch and sums its targets; with `axis_name`,
  `loss` gathers ids and reduce-scatters the targets, B * classes numbers and B
  bytes, and `update` gathers ids and logits. The loss is then the mean over the
  device's rows, to be averaged like the main loss. In `jax.shard_map` without
  `axis_name` nothing is sent: ids are of the device's own examples, from 0 on.

  Args:
    temperature: :math:`\tau`, above 0; it softens both distributions.
    weight: :math:`\lambda`, at least 0. 0.3 is the paper's.
    lag: age of a target in epochs, at least 1.
    start_epoch: first epoch with the loss; the ones before only fill the table.
    table_dtype: dtype of the table of examples * lag * classes numbers; None
      for float32, 15 GB for ImageNet; bfloat16 stores 2 to 3 digits. A donated
      table is written in place, but XLA on CPU widens one in bfloat16.
    axis_name: axis of `jax.shard_map` over which the table is split.

  Returns:
    A `SafLoss`, whose state is the table; a step costs 1 gradient.

  .. note:: :math:`\tau^2` is in the authors' code, not in the paper's
    equations; without it the loss is 25 times weaker. Their documented run has
    `lag=2` and weight 0.3; 3 and 0.16 are defaults of their command line. Their
    code starts an epoch later. It has one table per process but distributes the
    examples again every epoch: with 8 processes, 13 % of targets have the right
    age.

  References:
    Du, Zhou, Feng, Tan, Zhou, `Sharpness-Aware Training for Free
    <https://arxiv.org/abs/2205.14083>`_, NeurIPS 2022; we read the submission.

  >>> import jax.numpy as jnp, optax_sam
  >>> saf = optax_sam.saf_loss(temperature=1.0, weight=1.0, lag=1)
  >>> state = saf.init(4, 2)
  >>> ids, before = jnp.array([2, 0]), jnp.zeros((2, 2))
  >>> state = saf.update(before, state, ids, epoch=4)
  >>> logits = jnp.log(jnp.array([[1.0, 3.0], [1.0, 1.0]]))
  >>> round(float(saf.loss(logits, state, ids, epoch=5)), 4)  # log(4 / 3) / 4
  0.0719
  """
  divergence.check_settings(temperature, weight)
  validation.check_static_integer('lag', lag)
  validation.check_count('start_epoch', start_epoch, at_least=0)
  validation.check_float_dtype('table_dtype', table_dtype)
  dtype = jnp.dtype('float32' if table_dtype is None else table_dtype)

  def init(num_examples: int, num_classes: int) -> SafState:
    validation.check_static_integer('num_examples', num_examples)
    validation.check_static_integer('num_classes', num_classes)
    logits = jnp.zeros((num_examples, lag, num_classes), dtype)
    return SafState(logits, jnp.zeros((num_examples, lag), bool))

  def place(logits: Any, state: SafState, ids: Any, epoch: Any) -> Any:
    """Returns an index of the table, and which rows this device owns."""
    _check_batch(logits, state, ids, epoch, axis_name)
    rows, size = jnp.asarray(ids).astype(jnp.int32), len(state.filled)
    if axis_name:
      rows = jax.lax.all_gather(rows, axis_name, tiled=True)
      rows = rows - jax.lax.axis_index(axis_name) * size
    slot = jnp.asarray(epoch).astype(jnp.int32) % lag
    return (rows, slot), (rows >= 0) & (rows < size)

  def loss(
    logits: Any, state: SafState, ids: Any, epoch: Any, is_example: Any = None
  ) -> jax.Array:
    at, owned = place(logits, state, ids, epoch)
    targets = _take(state.logits, at, logits)
    known = owned & _take(state.filled, at, owned)
    if axis_name:
      # Each row is known to one device only; the others contribute zeros.
      targets = jnp.where(known[:, None], targets, jnp.zeros((), targets.dtype))
      scatter = lambda x: jax.lax.psum_scatter(x, axis_name, tiled=True)
      targets, known = scatter(targets), scatter(known.astype(jnp.int8)) > 0
    known &= jnp.asarray(epoch) >= start_epoch
    if is_example is not None:
      known &= is_example
    return divergence.mean(logits, targets, known, temperature, weight)

  def update(
    logits: Any, state: SafState, ids: Any, epoch: Any, is_example: Any = None
  ) -> SafState:
    at, owned = place(logits, state, ids, epoch)
    values = jax.lax.stop_gradient(logits).astype(dtype)
    if is_example is not None:
      # So it is not written, without sending the mask.
      values = jnp.where(is_example[:, None], values, jnp.nan)
    if axis_name:
      values = jax.lax.all_gather(values, axis_name, tiled=True)
    wanted = owned & jnp.all(jnp.isfinite(values), axis=-1)
    return SafState(
      _write(state.logits, at, values, wanted),
      _write(state.filled, at, jnp.ones_like(wanted), wanted),
    )

  return SafLoss(init, loss, update)


def _check_batch(
  logits: jax.Array, state: SafState, ids: Any, epoch: Any, axis_name: Any
) -> None:
  divergence.check_logits(logits)
  examples, _, classes = state.logits.shape
  if logits.shape[1] != classes:
    msg = (
      f'logits must have the {classes} classes of the table, got shape '
      f'{logits.shape}: write init(num_examples, {logits.shape[1]}).'
    )
    raise ValueError(msg)
  divergence.check_integers('ids', ids, logits.shape[:1])
  divergence.check_epoch(epoch)
  if axis_name or isinstance(ids, jax.core.Tracer):
    return
  if isinstance(ids, jax.Array) and not ids.is_fully_addressable:
    return
  values = np.asarray(ids)
  if values.size and not 0 <= values.min() <= values.max() < examples:
    msg = (
      f'ids must be from 0 to {examples - 1}, one for each row of the table, '
      f'got {values.min()} to {values.max()}; for rows of padding set '
      f'is_example to False and ids to 0.'
    )
    raise ValueError(msg)


def _write(table: jax.Array, at: Any, values: Any, wanted: Any) -> jax.Array:
  """Returns the table with the wanted rows replaced."""
  # Writing depends on reading; otherwise XLA copies the table to read from.
  former, (rows, slot) = _take(table, at, values), at
  is_new = wanted.reshape(-1, *[1] * (values.ndim - 1))
  # Rows beyond the end are dropped.
  place = table.at[jnp.where(wanted, rows, len(table)), slot]
  out, values = array_types.explicit(table), jnp.where(is_new, values, former)
  return place.set(values, mode='drop', out_sharding=out)


def _take(table: jax.Array, at: Any, like: jax.Array) -> jax.Array:
  """Returns entries of the table, split over devices as `like` is."""
  out = array_types.explicit(like)
  return table.at[at].get(mode='clip', out_sharding=out)
