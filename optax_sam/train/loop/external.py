"""Parts of a method outside of the optimizer: SAF, MESA and SWAD."""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from optax_sam import SafLoss
from optax_sam.train.loop.task import Statistics, Task
from optax_sam.train.optimizers.registry import ValidatedAveraging

# Lengths of tables are multiples of this number, so that any number of devices
# that divides it can split them, also after a resume.
_LENGTHS = 1024


class External(NamedTuple):
  """An auxiliary loss with a state, or an average."""

  # From parameters and running statistics to the initial state.
  init: Callable[[optax.Params, Statistics], Any]
  # From (logits in training mode, state, batch, number of the step, new
  # parameters) to the next state.
  after: Callable[..., Any]
  # The same without new parameters, to a scalar; None for an average.
  loss: Callable[..., Any] | None = None
  # From parameters, statistics and state to the state that a step reads.
  before: Callable[..., Any] = lambda *given: given[-1]
  # Whether it has a state for every example, and so needs their `ids`.
  by_example: bool = False


def build(built: Any, task: Task, epoch_steps: int) -> External | None:
  """Returns what `optimizers.build.external` has built for a task."""
  if built is None:
    return None
  if isinstance(built, ValidatedAveraging):
    accumulate = built.functions.accumulate
    return External(
      init=lambda params, _: built.functions.init(params),
      after=lambda _, memory, *rest: accumulate(memory, rest[-1]),
    )
  if task.objective.names[0] != 'cross_entropy':
    name = type(built).__name__.removesuffix('Loss').lower()
    msg = f"methods: {name} needs loss='cross_entropy'; leave it out"
    raise ValueError(msg)
  if isinstance(built, SafLoss):
    return _saf(built, task, epoch_steps)
  return External(
    init=lambda *given: built.init(given),
    before=lambda *given: built.update(given[:2], given[2]),
    loss=lambda logits, memory, batch, step: built.loss(
      logits,
      task.evaluation_outputs(*memory.average, batch=batch),
      step // epoch_steps,
    ),
    after=lambda _, memory, *__: memory,
  )


def _saf(saf: SafLoss, task: Task, epoch_steps: int) -> External:
  examples = -(-task.inputs.train_examples // _LENGTHS) * _LENGTHS

  def calling(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda logits, memory, batch, step, *_: function(
      logits, memory, batch['ids'], step // epoch_steps
    )

  return External(
    init=lambda *_: saf.init(examples, task.inputs.classes),
    loss=calling(saf.loss),
    after=calling(saf.update),
    by_example=True,
  )
