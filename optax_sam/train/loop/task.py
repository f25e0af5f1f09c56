"""The task of a run: model, data and objective."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_sam.train import models
from optax_sam.train.config import configs, errors
from optax_sam.train.data import datasets, inputs
from optax_sam.train.loop import objectives
from optax_sam.train.models import functions
from optax_sam.train.models.functions import Statistics


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
  """A model with its data, whose `labels` are the targets, and objective."""

  model: functions.ModelFunctions
  inputs: inputs.Inputs
  objective: objectives.Objective = dataclasses.field(
    default_factory=objectives.build
  )

  def init(self, key: jax.Array) -> tuple[optax.Params, Statistics]:
    """Returns new parameters and running statistics."""
    example = self.inputs.normalize(self.inputs.sample()['inputs'][:1])
    return self.model.init(key, example)

  def outputs(
    self, params: Any, statistics: Statistics, batch: datasets.Batch, key: Any
  ) -> tuple[Any, Statistics]:
    """Returns the outputs in training mode, and new statistics."""
    values = self.inputs.normalize(batch['inputs'])
    return self.model.apply(params, statistics, values, train=True, key=key)

  def evaluation_outputs(
    self, params: Any, statistics: Statistics, batch: datasets.Batch
  ) -> Any:
    """Returns the outputs in evaluation mode."""
    values = self.inputs.normalize(batch['inputs'])
    apply = self.model.apply
    return apply(params, statistics, values, train=False, key=None)[0]

  def losses(
    self, params: Any, statistics: Statistics, batch: datasets.Batch, key: Any
  ) -> tuple[jax.Array, Statistics]:
    """Returns per-example losses in training mode, and new statistics."""
    outputs, statistics = self.outputs(params, statistics, batch, key)
    return self.objective.training_loss(outputs, batch['labels']), statistics

  def per_example_losses(
    self, params: Any, statistics: Statistics, batch: datasets.Batch
  ) -> jax.Array:
    """Returns per-example training losses in evaluation mode.

    In training mode batch norm makes the losses depend on each other, and a
    single example has no variance to divide by.
    """
    outputs = self.evaluation_outputs(params, statistics, batch)
    return self.objective.training_loss(outputs, batch['labels'])

  def changed_statistics(
    self, variables: Mapping[str, Any], batch: datasets.Batch
  ) -> Statistics:
    """Returns the statistics after a pass with `params` and statistics."""
    statistics = {k: x for k, x in variables.items() if k != 'params'}
    key = jax.random.key(0)  # the same dropout at every evaluation
    return self.outputs(variables['params'], statistics, batch, key)[1]

  def evaluate(
    self, params: Any, statistics: Statistics, batch: datasets.Batch
  ) -> tuple[jax.Array, jax.Array]:
    """Returns loss and metric of every example, in evaluation mode.

    The loss excludes weight decay and label smoothing.
    """
    outputs = self.evaluation_outputs(params, statistics, batch)
    objective, targets = self.objective, batch['labels']
    return objective.loss(outputs, targets), objective.metric(outputs, targets)

  def evaluation_loss(
    self, params: Any, statistics: Statistics, batch: datasets.Batch
  ) -> jax.Array:
    """Returns the mean loss in evaluation mode, of rows with `is_example`."""
    losses = self.evaluate(params, statistics, batch)[0]
    return jnp.mean(losses, where=batch.get('is_example'))


def create(
  model: functions.ModelFunctions,
  dataset: datasets.Dataset,
  batch_size: int,
  objective: objectives.Objective,
) -> Task:
  """Returns a task of any model, after checking that its parts fit.

  If the targets are classes, their number becomes that of the outputs.
  """
  task = Task(model, inputs.InMemory(dataset, batch_size), objective)
  outputs = _checked_outputs(task)
  if objective.names[0] not in ('cross_entropy', 'next_token'):
    return task
  count = outputs.shape[-1]
  for part in ('train', 'test', 'validation'):
    if getattr(dataset, part) is not None:
      labels = getattr(dataset, part)['labels']
      objectives.check_labels(labels, count, part)
  dataset = dataclasses.replace(dataset, classes=count)
  return Task(model, inputs.InMemory(dataset, batch_size), objective)


def _checked_outputs(task: Task) -> Any:
  """Returns the shapes of the outputs for one example, which fit its target."""
  key, sample = jax.random.key(0), dict(task.inputs.sample())
  batch = {name: values[:1] for name, values in sample.items()}
  try:
    where = jax.eval_shape(task.init, key)
    outputs = jax.eval_shape(task.evaluation_outputs, *where, batch)
    jax.eval_shape(task.outputs, *where, sample, key)
  except Exception as error:
    msg = (
      f'model {task.model.name} fails on inputs of shape '
      f'{batch["inputs"].shape}: {errors.first_line(error)}'
    )
    raise ValueError(msg) from error
  dtypes = {leaf.dtype for leaf in jax.tree.leaves(where[0])}
  if not dtypes or not all(jnp.issubdtype(x, jnp.inexact) for x in dtypes):
    found = ', '.join(sorted(map(str, dtypes))) or 'none'
    msg = f'model {task.model.name} needs parameters of floats, not {found}'
    raise ValueError(msg)
  objectives.check(task.objective, outputs, batch['labels'])
  some = {name: values[:3] for name, values in sample.items()}
  several = jax.eval_shape(task.evaluation_outputs, *where, some)
  objectives.check_broadcast(task.objective, several, some['labels'])
  return outputs


def build(
  config: configs.Experiment, say: Callable[[str], None] = print
) -> Task:
  """Returns the task of a configuration; `say` reports unreadable examples.

  Raises:
    ValueError: if the dataset is missing, too small, or does not fit the model.
  """
  examples, dtype = _inputs(config, say), jnp.dtype(config.dtype)
  for flag, count in (
    ('batch-size', config.batch_size),
    ('sharpness-examples', config.sharpness_examples),
  ):
    which = f' of {config.dataset}'
    inputs.check_count(flag, count, examples.train_examples, which)
  shape = examples.sample()['inputs'].shape[1:]
  objective = objectives.build(
    config.loss, config.metric, label_smoothing=config.label_smoothing
  )
  model = models.build(config.model, examples.classes, shape, dtype=dtype)
  try:
    own = functions.from_model(model)
    if isinstance(examples, inputs.InMemory):
      return create(own, examples.dataset, config.batch_size, objective)
    task = Task(own, examples, objective)
    _checked_outputs(task)
  except ValueError as error:
    msg = f'--model {config.model} on {config.dataset}: {error}'
    raise ValueError(msg) from None
  return task


def _inputs(
  config: configs.Experiment, say: Callable[[str], None]
) -> inputs.Inputs:
  if config.dataset != 'imagenet':
    names = ('label_noise', 'data_dir', 'train_examples', 'resize')
    given = {name: getattr(config, name) for name in names}
    found = datasets.load(
      config.dataset, max_pixels=config.max_pixels, loss=config.loss, **given
    )
    return inputs.InMemory(found, config.batch_size)
  try:
    from optax_sam.train.data import imagenet
  except ModuleNotFoundError as error:
    msg = (
      f'--dataset {config.dataset} needs {error.name}: '
      f"pip install 'optax-sam[imagenet]'"
    )
    raise ValueError(msg) from None
  images: Any = config  # `compare` has no imagenet
  return imagenet.ImageInputs(
    images.data_dir,
    batch_size=config.batch_size,
    size=images.image_size,
    threads=images.input_threads,
    prefetch=images.prefetch,
    max_pixels=config.max_pixels,
    dtype=jnp.dtype(config.dtype),
    say=say,
  )
