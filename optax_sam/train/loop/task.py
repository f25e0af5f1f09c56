"""The task of a run: model, data and losses."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_sam.train import models
from optax_sam.train.config import configs
from optax_sam.train.data import datasets, inputs

Collections = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
  """A model with its data.

  Attributes:
    model: a linen module, called with `train=True` or `train=False`.
    inputs: its training and test examples.
    label_smoothing: fraction of a training label that is spread over all
      classes.
  """

  model: models.Model
  inputs: inputs.Inputs
  label_smoothing: float = 0.0

  def close(self) -> None:
    """Stops prefetching."""
    self.inputs.close()

  def init(self, key: jax.Array) -> tuple[optax.Params, Collections]:
    """Returns new parameters and running statistics."""
    example = self.inputs.normalize(self.inputs.sample()['inputs'][:1])
    variables = dict(self.model.init(key, example, train=False))
    return variables.pop('params'), variables

  def losses(
    self,
    params: optax.Params,
    statistics: Collections,
    batch: datasets.Batch,
    key: jax.Array,
  ) -> tuple[jax.Array, Collections]:
    """Returns per-example losses in training mode, and new statistics."""
    logits, statistics = self.logits(params, statistics, batch, key)
    return self.losses_of(logits, batch), statistics

  def logits(
    self,
    params: optax.Params,
    statistics: Collections,
    batch: datasets.Batch,
    key: jax.Array,
  ) -> tuple[jax.Array, Collections]:
    """Returns the logits in training mode, and new statistics."""
    return self._apply(
      params,
      statistics,
      batch,
      train=True,
      rngs={'dropout': key},
      mutable=list(statistics),
    )

  def evaluation_logits(
    self, params: optax.Params, statistics: Collections, batch: datasets.Batch
  ) -> jax.Array:
    """Returns the logits in evaluation mode."""
    return self._apply(params, statistics, batch, train=False)

  def changed_statistics(
    self, variables: Mapping[str, Any], batch: datasets.Batch
  ) -> Collections:
    """Returns the running statistics after a pass in training mode.

    Args:
      variables: the present statistics and `params`.
      batch: examples of the pass.
    """
    statistics = {k: x for k, x in variables.items() if k != 'params'}
    key = jax.random.key(0)  # the same dropout at every evaluation
    return self.losses(variables['params'], statistics, batch, key)[1]

  def per_example_losses(
    self, params: optax.Params, statistics: Collections, batch: datasets.Batch
  ) -> jax.Array:
    """Returns per-example losses in evaluation mode.

    In training mode batch norm makes the losses depend on each other, and a
    single example has no variance to divide by.
    """
    logits = self.evaluation_logits(params, statistics, batch)
    return self.losses_of(logits, batch)

  def loss(
    self,
    params: optax.Params,
    statistics: Collections,
    batch: datasets.Batch,
    key: jax.Array,
  ) -> tuple[jax.Array, Collections]:
    """Returns the mean loss in training mode, and new statistics."""
    losses, statistics = self.losses(params, statistics, batch, key)
    return jnp.mean(losses), statistics

  def evaluate(
    self, params: optax.Params, statistics: Collections, batch: datasets.Batch
  ) -> tuple[jax.Array, jax.Array]:
    """Returns mean loss and accuracy in evaluation mode."""
    logits = self.evaluation_logits(params, statistics, batch)
    losses = _cross_entropy(logits, batch['labels'])
    right = jnp.argmax(logits, axis=-1) == batch['labels']
    return jnp.mean(losses), jnp.mean(right.astype(jnp.float32))

  def evaluation_sums(
    self, params: optax.Params, statistics: Collections, batch: datasets.Batch
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns summed losses, correct predictions and number of examples.

    In evaluation mode. Rows with false `is_example` have weight 0.
    """
    logits = self.evaluation_logits(params, statistics, batch)
    counts = batch['is_example']
    losses = _cross_entropy(logits, batch['labels'])
    right = jnp.argmax(logits, axis=-1) == batch['labels']
    return (
      jnp.sum(jnp.where(counts, losses, 0)),
      jnp.sum(right & counts),
      jnp.sum(counts),
    )

  def evaluation_loss(
    self, params: optax.Params, statistics: Collections, batch: datasets.Batch
  ) -> jax.Array:
    """Returns the mean loss in evaluation mode.

    It excludes weight decay and label smoothing.
    """
    if 'is_example' in batch:
      total, _, examples = self.evaluation_sums(params, statistics, batch)
      return total / jnp.maximum(examples, 1)
    return self.evaluate(params, statistics, batch)[0]

  def losses_of(self, logits: jax.Array, batch: datasets.Batch) -> jax.Array:
    """Returns per-example training losses, with smoothed labels."""
    if not self.label_smoothing:
      return _cross_entropy(logits, batch['labels'])
    labels = optax.smooth_labels(
      jax.nn.one_hot(batch['labels'], logits.shape[-1]), self.label_smoothing
    )
    return optax.softmax_cross_entropy(logits, labels)

  def _apply(
    self,
    params: Any,
    statistics: Collections,
    batch: datasets.Batch,
    **how: Any,
  ) -> Any:
    variables = {'params': params, **statistics}
    values = self.inputs.normalize(batch['inputs'])
    return self.model.apply(variables, values, **how)


def build(
  config: configs.Experiment, say: Callable[[str], None] = print
) -> Task:
  """Returns the task of a configuration.

  Args:
    config: configuration of the run.
    say: called with a message for every example that cannot be read.

  Raises:
    ValueError: if the dataset is missing, too small, or does not fit the model.
  """
  examples = _inputs(config, say)
  for name in ('batch_size', 'sharpness_examples'):
    if getattr(config, name) > examples.train_examples:
      msg = (
        f'--{name.replace("_", "-")} must be at most '
        f'{examples.train_examples}, the number of training examples of '
        f'{config.dataset}, not {getattr(config, name)}'
      )
      raise ValueError(msg)
  shape = examples.sample()['inputs'].shape[1:]
  model = models.build(
    config.model, examples.classes, shape, dtype=jnp.dtype(config.dtype)
  )
  task = Task(model, examples, config.label_smoothing)
  try:
    jax.eval_shape(task.init, jax.random.key(0))
  except ValueError as error:
    msg = f'--model {config.model} on {config.dataset}: {error}'
    raise ValueError(msg) from None
  return task


def _inputs(
  config: configs.Experiment, say: Callable[[str], None]
) -> inputs.Inputs:
  is_images = config.dataset == 'imagenet' and config.data_dir is not None
  if not (is_images and isinstance(config, configs.TrainConfig)):
    return inputs.InMemory(datasets.of_config(config), config.batch_size)
  try:
    from optax_sam.train.data import imagenet, imagenet_inputs
  except ModuleNotFoundError as error:
    msg = (
      f'--dataset {config.dataset} needs {error.name}: '
      f"pip install 'optax-sam[imagenet]'"
    )
    raise ValueError(msg) from None
  options = imagenet.InputOptions(
    batch_size=config.batch_size,
    size=config.image_size,
    threads=config.input_threads,
    prefetch=config.prefetch,
  )
  directory: Any = config.data_dir
  return imagenet_inputs.ImageInputs(
    directory, options, dtype=jnp.dtype(config.dtype), say=say
  )


def _cross_entropy(logits: jax.Array, labels: Any) -> jax.Array:
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
