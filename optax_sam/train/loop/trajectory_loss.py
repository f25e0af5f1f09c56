"""SAF and MESA in the form in which the step of the trainer takes them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from optax_sam import MesaLoss, SafLoss
from optax_sam.train.data.datasets import Batch
from optax_sam.train.loop.task import Collections, Task

# Tables are as long as a multiple of it, so that any number of devices that
# divides it may split them, and a run may go on with another such number.
_LENGTHS = 1024


class Term(NamedTuple):
  """A term that is added to the loss, and what it keeps from step to step.

  Attributes:
    init: from parameters and running statistics to what it keeps.
    before: from (parameters, running statistics, what it keeps) to what the
      step reads of it.
    loss: from (logits in training mode, what the step reads, batch, number of
      the step) to the term, a scalar.
    after: from the same to what is kept for the next step.
    by_example: whether it keeps something of every example, and so needs the
      `ids` of those in a batch.
  """

  init: Callable[[optax.Params, Collections], Any]
  before: Callable[[optax.Params, Collections, Any], Any]
  loss: Callable[[jax.Array, Any, Batch, jax.Array], jax.Array]
  after: Callable[[jax.Array, Any, Batch, jax.Array], Any]
  by_example: bool


def term(
  built: SafLoss | MesaLoss | None, task: Task, epoch_steps: int
) -> Term | None:
  """Returns a term of the loss of a task.

  Args:
    built: what the library offers; None for no term.
    task: what is trained.
    epoch_steps: steps in an epoch.
  """
  if isinstance(built, SafLoss):
    return _saf(built, task, epoch_steps)
  return None if built is None else _mesa(built, task)


def _saf(saf: SafLoss, task: Task, epoch_steps: int) -> Term:
  examples = -(-task.inputs.train_examples // _LENGTHS) * _LENGTHS

  def loss(
    logits: jax.Array, memory: Any, batch: Batch, step: jax.Array
  ) -> jax.Array:
    return saf.loss(logits, memory, batch['ids'], step // epoch_steps)

  def after(
    logits: jax.Array, memory: Any, batch: Batch, step: jax.Array
  ) -> Any:
    return saf.update(logits, memory, batch['ids'], step // epoch_steps)

  return Term(
    init=lambda *_: saf.init(examples, task.inputs.classes),
    before=lambda *given: given[-1],
    loss=loss,
    after=after,
    by_example=True,
  )


def _mesa(mesa: MesaLoss, task: Task) -> Term:
  """Averages the running statistics of batch norm as it does the weights."""

  def before(params: optax.Params, statistics: Collections, memory: Any) -> Any:
    return mesa.update((params, statistics), memory)

  def loss(
    logits: jax.Array, memory: Any, batch: Batch, step: jax.Array
  ) -> jax.Array:
    del step
    params, statistics = memory.average
    return mesa.loss(logits, task.evaluation_logits(params, statistics, batch))

  return Term(
    init=lambda *given: mesa.init(given),
    before=before,
    loss=loss,
    after=lambda *given: given[1],
    by_example=False,
  )
