"""Runs that validate: their data, and what a validation does.

They don't train on the examples that they validate on, while other methods of a
comparison train on all of them: data is what such a method costs.
"""

from optax_sam.train.data.datasets import Batch
from optax_sam.train.data.inputs import InMemory, Inputs
from optax_sam.train.distributed.sharding import Placement
from optax_sam.train.loop import evaluation
from optax_sam.train.loop.task import Task
from optax_sam.train.loop.train_step import TrainingState
from optax_sam.train.optimizers.weight_averaging import ValidatedAveraging


def inputs(whole: Inputs, averaging: ValidatedAveraging, name: str) -> Inputs:
  """Returns the data of runs that hold examples out.

  Args:
    whole: that of runs that train on all examples, which are in memory.
    averaging: that the method is.
    name: of the method.

  Raises:
    ValueError: if no example is held out, or too few are left.
  """
  assert isinstance(whole, InMemory)  # checked before the run
  parts = whole.holding_out(averaging.held_out)
  if parts.train_examples == whole.train_examples:
    msg = (
      f'{name}: a validation_share of {averaging.held_out} holds out none of '
      f'{whole.train_examples} training examples; give a larger one'
    )
    raise ValueError(msg)
  if parts.batch_size > parts.train_examples:
    msg = (
      f'--batch-size must be at most {parts.train_examples}, the training '
      f'examples that {name} does not hold out, not {parts.batch_size}'
    )
    raise ValueError(msg)
  return parts


def validate(
  task: Task,
  averaging: ValidatedAveraging,
  state: TrainingState,
  held_out: Batch,
  placement: Placement,
) -> tuple[TrainingState, dict[str, float]]:
  """Tells an average what the loss of the held-out examples is.

  In evaluation mode, with the running statistics of the run.

  Args:
    task: what is trained.
    averaging: that the method is.
    state: behind a step.
    held_out: examples that the run doesn't train on.
    placement: of all arrays.

  Returns:
    The state to go on with, and a row of what was found.
  """
  loss, accuracy = evaluation.evaluate(
    task, state.params, state.statistics, [held_out], placement
  )
  memory = placement.made(averaging.functions.validate, state.memory, loss)
  return state._replace(memory=memory), {
    'step': int(state.step),
    'validation_loss': loss,
    'validation_accuracy': accuracy,
    'first_segment': int(memory.first_segment),
    'last_segment': int(memory.last_segment),
  }
