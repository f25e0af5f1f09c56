"""Loss and metric over test examples."""

import functools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from optax_sam import batch_norm
from optax_sam.train.data.datasets import Batch
from optax_sam.train.distributed.sharding import Placement
from optax_sam.train.loop.task import Statistics, Task

# More examples would hardly change the means.
_EXAMPLES = 4096
# Examples of one forward pass, which limits its memory.
_PART = 1024


def evaluate(
  task: Task,
  params: Any,
  statistics: Statistics,
  batches: Iterable[Batch],
  placement: Placement,
) -> tuple[float, float]:
  """Returns mean loss and mean metric in evaluation mode, NaN of no examples.

  Batches are the same on every process, or they have `is_example`, and every
  process has its own rows. Rows with false `is_example` have weight 0.
  """
  sums: list[Any] = [(0.0, 0.0, 0.0)]
  for batch in batches:
    for part in _parts(batch, placement):
      found = _sums(task, params, statistics, part)
      sums.append(tuple(map(float, found[:3])))
  losses, values, examples = map(math.fsum, zip(*sums, strict=True))
  if not examples:
    return math.nan, math.nan
  return losses / examples, values / examples


def test_values(
  task: Task, params: Any, statistics: Statistics, placement: Placement
) -> list[float]:
  """Returns the metric of every test example, for data in memory."""
  return [
    value
    for batch in task.inputs.test()
    for part in _parts(batch, placement)
    for value in _sums(task, params, statistics, part)[3].tolist()
  ]


def _parts(batch: Batch, placement: Placement) -> Iterator[Batch]:
  """Places parts that fit in memory, of equal size if possible."""
  if 'is_example' in batch:
    yield placement.batch(batch)
    return
  count = len(batch['labels'])
  sizes = range(min(_PART, count), _PART // 2, -1)
  size = next((size for size in sizes if count % size == 0), _PART)
  for start in range(0, count, size):
    rows = slice(start, start + size)
    yield placement.whole({name: x[rows] for name, x in batch.items()})


@functools.partial(jax.jit, static_argnums=0)
def _sums(
  task: Task, params: Any, statistics: Statistics, batch: Batch
) -> tuple[jax.Array, ...]:
  """Returns summed losses and metrics, the examples, and each metric."""
  losses, values = task.evaluate(params, statistics, batch)
  counts = batch.get('is_example', jnp.ones(len(losses), bool))
  sums = (jnp.sum(x, where=counts) for x in (losses, values))
  return *sums, jnp.sum(counts), values


def statistics(
  task: Task, params: Any, former: Statistics, placement: Placement
) -> Statistics:
  """Returns running statistics of batch norm for averaged parameters.

  They are computed batch by batch over fixed training examples, with the shapes
  of `former`, the statistics of other parameters.
  """
  if not former:
    return former
  rows = task.inputs.batch_size
  count = max(1, min(task.inputs.train_examples, _EXAMPLES) // rows)
  examples = task.inputs.fixed(count * rows)
  # Neighbours may belong to one class, so batches are strided.
  batch = lambda first: placement.whole(
    {name: x[first::count] for name, x in examples.items()}
  )
  variables = batch_norm.reestimate_batch_norm(
    # A method is compiled once; a function made here would be at every call.
    task.changed_statistics,
    {'params': params, **former},
    map(batch, range(count)),
  )
  found = {name: variables[name] for name in former}
  if not any(map(_is_count, jax.tree.leaves(found))):
    return found
  # Equinox divides by a function of the steps so far, except at the start.
  after = jax.jit(task.changed_statistics)(variables, batch(0))
  return jax.tree.map(
    lambda x, y: jnp.zeros_like(x) if _is_count(x) and x != y else x,
    found,
    after,
  )


def _is_count(leaf: jax.Array) -> bool:
  return not leaf.shape and jnp.issubdtype(leaf.dtype, jnp.integer)
