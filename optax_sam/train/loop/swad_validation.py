"""Runs that hold out training examples for validation.

They don't train on the validation examples, while other methods of a comparison
train on all examples. So such a method costs training data.
"""

from optax_sam.train.data.datasets import Batch
from optax_sam.train.data.inputs import InMemory, Inputs
from optax_sam.train.distributed.sharding import Placement
from optax_sam.train.loop import evaluation
from optax_sam.train.loop.task import Task
from optax_sam.train.loop.train_step import TrainingState
from optax_sam.train.optimizers.weight_averaging import ValidatedAveraging


def inputs(whole: Inputs, averaging: ValidatedAveraging, name: str) -> Inputs:
  """Returns the data of runs that hold out examples.

  Args:
    whole: data of runs that train on all examples, in memory.
    averaging: the averaging of the method.
    name: name of the method.

  Raises:
    ValueError: if no example is held out, or too few are left.
  """
  assert isinstance(whole, InMemory)  # checked before
  parts = whole.with_held_out(averaging.held_out)
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
  """Updates an average with the loss on the held-out examples.

  The loss is in evaluation mode, with the running statistics of the run.

  Args:
    task: model and data.
    averaging: the averaging of the method.
    state: state after a step.
    held_out: examples that the run doesn't train on.
    placement: placement of all arrays.

  Returns:
    The next state, and a row of metrics.
  """
  loss, value = evaluation.evaluate(
    task, state.params, state.statistics, [held_out], placement
  )
  memory = placement.made(averaging.functions.validate, state.memory, loss)
  return state._replace(memory=memory), {
    'step': int(state.step),
    'validation_loss': loss,
    f'validation_{task.objective.measured.name}': value,
    'first_segment': int(memory.first_segment),
    'last_segment': int(memory.last_segment),
  }
