"""SAF and MESA as auxiliary losses of the training step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from optax_sam import MesaLoss, SafLoss
from optax_sam.train.data.datasets import Batch
from optax_sam.train.loop.task import Statistics, Task

# Lengths of tables are multiples of this number, so that any number of devices
# that divides it can split them, also after a resume.
_LENGTHS = 1024


class AuxiliaryLoss(NamedTuple):
  """An auxiliary loss with a state.

  Attributes:
    init: maps parameters and running statistics to the initial state.
    before: maps (parameters, running statistics, state) to the state that the
      loss of this step reads.
    loss: maps (logits in training mode, state, batch, number of the step) to a
      scalar.
    after: maps the same arguments to the state of the next step.
    by_example: whether it has a state for every example, and so needs the `ids`
      of the examples in a batch.
  """

  init: Callable[[optax.Params, Statistics], Any]
  before: Callable[[optax.Params, Statistics, Any], Any]
  loss: Callable[[jax.Array, Any, Batch, jax.Array], jax.Array]
  after: Callable[[jax.Array, Any, Batch, jax.Array], Any]
  by_example: bool


def auxiliary_loss(
  built: SafLoss | MesaLoss | None, task: Task, epoch_steps: int
) -> AuxiliaryLoss | None:
  """Returns the auxiliary loss of a task.

  Args:
    built: the auxiliary loss of the library; None for none.
    task: model and data.
    epoch_steps: number of steps in an epoch.
  """
  if built is not None and task.objective.names[0] != 'cross_entropy':
    name = type(built).__name__.removesuffix('Loss').lower()
    msg = f"methods: {name} needs loss='cross_entropy'; leave it out"
    raise ValueError(msg)
  if isinstance(built, SafLoss):
    return _saf(built, task, epoch_steps)
  return None if built is None else _mesa(built, task, epoch_steps)


def _saf(saf: SafLoss, task: Task, epoch_steps: int) -> AuxiliaryLoss:
  examples = -(-task.inputs.train_examples // _LENGTHS) * _LENGTHS

  def calling(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda logits, memory, batch, step: function(
      logits, memory, batch['ids'], step // epoch_steps
    )

  return AuxiliaryLoss(
    init=lambda *_: saf.init(examples, task.inputs.classes),
    before=lambda *given: given[-1],
    loss=calling(saf.loss),
    after=calling(saf.update),
    by_example=True,
  )


def _mesa(mesa: MesaLoss, task: Task, epoch_steps: int) -> AuxiliaryLoss:
  """Averages the running statistics of batch norm like the weights."""

  def loss(logits: Any, memory: Any, batch: Batch, step: Any) -> jax.Array:
    params, statistics = memory.average
    targets = task.evaluation_outputs(params, statistics, batch)
    return mesa.loss(logits, targets, step // epoch_steps)

  return AuxiliaryLoss(
    init=lambda *given: mesa.init(given),
    before=lambda params, statistics, memory: mesa.update(
      (params, statistics), memory
    ),
    loss=loss,
    after=lambda *given: given[1],
    by_example=False,
  )
