"""Loss and accuracy over test examples."""

import functools
import math
from collections.abc import Iterable
from typing import Any

import jax

from optax_sam import batch_norm
from optax_sam.train.data.datasets import Batch
from optax_sam.train.distributed.sharding import Placement
from optax_sam.train.loop.task import Collections, Task

# More examples would hardly change the means.
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
    task: model and losses.
    params: the parameters to evaluate.
    statistics: running statistics of batch norm.
    batches: either one batch of all examples, the same on every process, or
      batches with `is_example`, of which every process has its own rows. Rows
      with false `is_example` have weight 0.
    placement: of the batches.

  Returns:
    Both means; NaN if there are no examples.
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
  """Returns running statistics of batch norm for averaged parameters.

  They are computed batch by batch over fixed training examples.

  Args:
    task: model and data.
    params: parameters that have no running statistics.
    former: statistics of other parameters, for the shapes; empty if the model
      has none.
    placement: of the batches.
  """
  if not former:
    return former
  inputs = task.inputs
  rows = inputs.batch_size
  count = max(1, min(inputs.train_examples, _EXAMPLES) // rows)
  examples = inputs.fixed(count * rows)
  batches = (
    # Neighbours may belong to one class, so batches are strided.
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
