"""SAF: an auxiliary loss that compares logits with those of earlier epochs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_sam import validation
from optax_sam.trees import array_types, divergence


class SafState(NamedTuple):
  """State of `saf_loss`: a table with one row per example.

  `logits` (examples, lag, classes) has those of epoch e in slot `e % lag`;
  `filled` (examples, lag) is True for slots that were written.
  """

  logits: jax.Array
  filled: jax.Array


class SafLoss(NamedTuple):
  """The functions of `saf_loss`; all of them are pure.

  `init(num_examples, num_classes)` returns an empty state. `loss` returns the
  auxiliary loss, and `update` the next state, both from `(logits, state, ids,
  epoch, is_example=None)`: `logits` are those of the step, (B, classes), `ids`
  the indices of its examples, integers (B,) from 0 on, each at most once,
  `epoch` is from 0 on, and `is_example`, bool (B,), is False for padding.
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

  SAF adds an auxiliary loss :math:`D`: from epoch `start_epoch`, it penalizes
  the divergence from an example's logits of `lag` epochs before, in a table.

  .. math::
    \begin{align*}
      y_i &= \text{table}[i, e \bmod \text{lag}] \\
      D &= (\lambda \tau^2 / B) \sum_i \text{KL}(
        \text{softmax}(y_i / \tau) \,\|\, \text{softmax}(z_i / \tau)) \\
      \text{table}[i, e \bmod \text{lag}] &\leftarrow z_i
    \end{align*}

  :math:`z_i` are the logits of example i in epoch :math:`e`, and :math:`B` is
  the number of rows of the batch. The sum is over the examples whose slot was
  written. An example that misses an epoch, as in an incomplete last batch, has
  a target that is older by a multiple of `lag`. Logits that are not finite are
  not written. An id out of range is an error, except under jit, where it has no
  target and is not written. Don't mix examples, as mixup does.

  **Devices.** Split the state along its first axis: by `P('data')`, in a
  `NamedSharding` under `jax.jit` or in the specs of `jax.shard_map`. With n
  devices and `n * m` examples (round up), device d owns the examples `d * m` to
  `(d + 1) * m - 1`. A batch may have any example. The table is never sent:
  under `jax.jit` the compiler gathers ids and logits of the batch and sums its
  targets. With `axis_name`, `loss` gathers ids and reduce-scatters the targets,
  B * classes numbers and B bytes; `update` gathers ids and logits. The loss is
  then the mean over the device's rows, to be averaged like the main loss. In
  `jax.shard_map` without `axis_name` nothing is sent: ids count from the first
  example that the device owns, and a batch has only these.

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

  .. note::
    :math:`\tau^2` is in the authors' code, not in the paper's equations;
    without it the loss is 25 times weaker. Their documented run has `lag=2` and
    weight 0.3; 3 and 0.16 are only defaults of their command line. Their code
    starts an epoch later, and has a table per process but deals the examples
    again every epoch: with 8 processes, 13 % of its targets have the right age.

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

  def place(logits: Any, state: SafState, ids: Any, epoch: Any) -> _Place:
    _check_batch(logits, state, ids, epoch, axis_name)
    rows, size = jnp.asarray(ids).astype(jnp.int32), len(state.filled)
    if axis_name:
      rows = jax.lax.all_gather(rows, axis_name, tiled=True)
      rows = rows - jax.lax.axis_index(axis_name) * size
    slot = jnp.asarray(epoch).astype(jnp.int32) % lag
    return _Place(rows, slot, (rows >= 0) & (rows < size))

  def loss(
    logits: Any, state: SafState, ids: Any, epoch: Any, is_example: Any = None
  ) -> jax.Array:
    where = place(logits, state, ids, epoch)
    targets = _take_rows(state.logits, where, logits)
    known = where.owned & _take_rows(state.filled, where, where.owned)
    if axis_name:
      # Each row is known to one device only; the others contribute zeros.
      zero = jnp.zeros((), targets.dtype)
      targets = jnp.where(known[:, None], targets, zero)
      scatter = lambda x: jax.lax.psum_scatter(x, axis_name, tiled=True)
      targets, known = scatter(targets), scatter(known.astype(jnp.int8)) > 0
    known &= jnp.asarray(epoch) >= start_epoch
    if is_example is not None:
      known &= is_example
    return divergence.mean(logits, targets, known, temperature, weight)

  def update(
    logits: Any, state: SafState, ids: Any, epoch: Any, is_example: Any = None
  ) -> SafState:
    where = place(logits, state, ids, epoch)
    values = jax.lax.stop_gradient(logits).astype(dtype)
    if is_example is not None:
      # So it is not written, without sending the mask.
      values = jnp.where(is_example[:, None], values, jnp.nan)
    if axis_name:
      values = jax.lax.all_gather(values, axis_name, tiled=True)
    finite = jnp.all(jnp.isfinite(values), axis=-1)
    return SafState(
      _write_rows(state.logits, where, values, finite),
      _write_rows(state.filled, where, jnp.ones_like(finite), finite),
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
  dtype, shape = jnp.result_type(ids), logits.shape[:1]
  if jnp.shape(ids) != shape or not jnp.issubdtype(dtype, jnp.integer):
    msg = (
      f'ids must be integers of shape {shape}, got {dtype} of shape '
      f'{jnp.shape(ids)}.'
    )
    raise ValueError(msg)
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


class _Place(NamedTuple):
  """Positions of the rows of a batch in this device's part of the table."""

  rows: jax.Array  # first index, for the rows of all devices with an axis name
  slot: jax.Array  # second index, a scalar
  owned: jax.Array  # whether this device owns the row, bool (B,)


def _write_rows(
  table: jax.Array, place: _Place, values: jax.Array, wanted: jax.Array
) -> jax.Array:
  """Returns the table with those rows replaced that are wanted and owned."""
  # Writing depends on reading; otherwise XLA copies the table to read from.
  former = _take_rows(table, place, values)
  wanted = wanted.reshape(-1, *[1] * (values.ndim - 1))
  values = jnp.where(wanted, values, former)
  # Beyond the end, where they are dropped.
  rows = jnp.where(place.owned, place.rows, len(table))
  out = array_types.explicit(table)
  return table.at[rows, place.slot].set(values, mode='drop', out_sharding=out)


def _take_rows(table: jax.Array, place: _Place, like: jax.Array) -> jax.Array:
  """Returns rows of the table, split over devices as `like` is."""
  at, out = (place.rows, place.slot), array_types.explicit(like)
  return table.at[at].get(mode='clip', out_sharding=out)
