"""Means over test examples, each of which counts once."""

import functools
import math
from collections.abc import Iterable
from typing import Any

import jax

from optax_sam import batch_norm
from optax_sam.train.data.datasets import Batch
from optax_sam.train.distributed.sharding import Placement
from optax_sam.train.loop.task import Collections, Task

# Means over so many examples hardly change with more of them.
_EXAMPLES = 4096


def evaluate(
  task: Task,
  params: Any,
  statistics: Collections,
  batches: Iterable[Batch],
  placement: Placement,
) -> tuple[float, float]:
  """Returns mean loss and accuracy in evaluation mode.

  Args:
    task: the model and its losses.
    params: where to evaluate.
    statistics: of batch norm, of the same model.
    batches: one batch of all examples, the same on every process; or batches
      with `is_example`, in which the other rows count nothing, and of which
      every process has its rows.
    placement: of the batches.

  Returns:
    Both means; NaN if there is no example at all.
  """
  losses, right, examples = [], 0, 0
  for batch in batches:
    if 'is_example' not in batch:
      loss, accuracy = whole(task, params, statistics, placement.whole(batch))
      return float(loss), float(accuracy)
    sums = _sums(task, params, statistics, placement.batch(batch))
    losses.append(float(sums[0]))
    right += int(sums[1])
    examples += int(sums[2])
  if not examples:
    return math.nan, math.nan
  return math.fsum(losses) / examples, right / examples


def statistics(
  task: Task, params: Any, former: Collections, placement: Placement
) -> Collections:
  """Returns running statistics of batch norm for parameters without any.

  Over fixed training examples, by the batch.

  Args:
    task: the model and its data.
    params: that no step of a run has seen.
    former: statistics of other parameters; none if the model has none.
    placement: of the batches.
  """
  if not former:
    return former
  inputs = task.inputs
  rows = inputs.batch_size
  count = max(1, min(inputs.train_examples, _EXAMPLES) // rows)
  examples = inputs.fixed(count * rows)
  batches = (
    # Neighbours may be of one class: every batch takes one of every so many.
    placement.whole({k: x[first::count] for k, x in examples.items()})
    for first in range(count)
  )
  variables = batch_norm.reestimate_batch_norm(
    task.changed_statistics, {'params': params, **former}, batches
  )
  return {name: variables[name] for name in former}


@functools.partial(jax.jit, static_argnums=0)
def whole(
  task: Task, params: Any, statistics: Collections, batch: Batch
) -> tuple[jax.Array, jax.Array]:
  """Returns mean loss and accuracy over one batch."""
  return task.evaluate(params, statistics, batch)


@functools.partial(jax.jit, static_argnums=0)
def _sums(
  task: Task, params: Any, statistics: Collections, batch: Batch
) -> tuple[jax.Array, jax.Array, jax.Array]:
  return task.evaluation_sums(params, statistics, batch)
