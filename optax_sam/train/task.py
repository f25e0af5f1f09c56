"""What is trained: a model, a dataset, and the losses between the two."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_sam.train import config as config_lib
from optax_sam.train import data, models

Collections = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
  """A model with its dataset.

  Attributes:
    model: a linen module, called with `train=True` or `train=False`.
    dataset: its training and test examples.
  """

  model: models.MLP | models.CNN
  dataset: data.Dataset

  def init(self, key: jax.Array) -> tuple[optax.Params, Collections]:
    """Returns new parameters and running statistics."""
    example = self.dataset.train['inputs'][:1]
    variables = dict(self.model.init(key, example, train=False))
    return variables.pop('params'), variables

  def losses(
    self,
    params: optax.Params,
    statistics: Collections,
    batch: data.Batch,
    key: jax.Array,
  ) -> tuple[jax.Array, Collections]:
    """Returns one loss an example in training mode, and new statistics."""
    logits, statistics = self._apply(
      params,
      statistics,
      batch,
      train=True,
      rngs={'dropout': key},
      mutable=list(statistics),
    )
    return _cross_entropy(logits, batch['labels']), statistics

  def single_losses(
    self, params: optax.Params, statistics: Collections, batch: data.Batch
  ) -> jax.Array:
    """Returns one loss an example in evaluation mode.

    So that no example depends on another: one alone has no variance that batch
    norm could divide by.
    """
    logits = self._apply(params, statistics, batch, train=False)
    return _cross_entropy(logits, batch['labels'])

  def loss(
    self,
    params: optax.Params,
    statistics: Collections,
    batch: data.Batch,
    key: jax.Array,
  ) -> tuple[jax.Array, Collections]:
    """Returns the mean loss in training mode, and new statistics."""
    losses, statistics = self.losses(params, statistics, batch, key)
    return jnp.mean(losses), statistics

  def evaluate(
    self, params: optax.Params, statistics: Collections, batch: data.Batch
  ) -> tuple[jax.Array, jax.Array]:
    """Returns mean loss and accuracy in evaluation mode."""
    logits = self._apply(params, statistics, batch, train=False)
    losses = _cross_entropy(logits, batch['labels'])
    right = jnp.argmax(logits, axis=-1) == batch['labels']
    return jnp.mean(losses), jnp.mean(right.astype(jnp.float32))

  def evaluation_loss(
    self, params: optax.Params, statistics: Collections, batch: data.Batch
  ) -> jax.Array:
    """Returns the mean loss in evaluation mode, without weight decay."""
    return self.evaluate(params, statistics, batch)[0]

  def _apply(
    self, params: Any, statistics: Collections, batch: data.Batch, **how: Any
  ) -> Any:
    variables = {'params': params, **statistics}
    return self.model.apply(variables, batch['inputs'], **how)


def build(config: config_lib.Experiment) -> Task:
  """Returns the task of a configuration.

  Raises:
    ValueError: if the dataset is too small for the configuration.
  """
  dataset = data.load(config.dataset, label_noise=config.label_noise)
  examples = len(dataset.train['labels'])
  for name in ('batch_size', 'sharpness_examples'):
    if getattr(config, name) > examples:
      msg = (
        f'--{name.replace("_", "-")} must be at most {examples}, the number '
        f'of training examples of {config.dataset}, not {getattr(config, name)}'
      )
      raise ValueError(msg)
  shape = dataset.train['inputs'].shape[1:]
  return Task(models.build(config.model, dataset.classes, shape), dataset)


def _cross_entropy(logits: jax.Array, labels: Any) -> jax.Array:
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
