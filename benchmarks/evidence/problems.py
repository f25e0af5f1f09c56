"""The problems: small networks on few examples, some mislabelled."""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_sam.train import models
from optax_sam.train.data import datasets

_MOMENTUM = 0.9
_MOST_VALIDATING = 1000


@dataclasses.dataclass(frozen=True)
class Problem:
  """A network with data and training settings.

  A seed draws training and validation examples, wrong labels in both, initial
  parameters and order. The test examples are always the same, with true labels.

  Attributes:
    title: name on the page.
    dataset: `digits` or `mnist1d`.
    model: maps the number of classes to the network.
    examples: number of training examples; up to 1000 of the remaining examples
      are for validation.
    steps: number of steps.
    batch_size: number of examples in a batch.
    base: name of the base optimizer.
    learning_rates: candidate learning rates of the base optimizer.
    label_noise: fraction of wrong labels.
  """

  title: str
  dataset: str
  model: Callable[[int], nn.Module]
  examples: int
  steps: int
  batch_size: int
  base: str
  learning_rates: tuple[float, ...]
  label_noise: float = 0.0

  def optimizer(
    self, learning_rate: jax.Array, steps: int
  ) -> optax.GradientTransformation:
    """Returns the base optimizer, with a learning rate that decays to 0."""
    shape = optax.cosine_decay_schedule(1.0, steps)
    schedule = lambda count: learning_rate * shape(count)
    if self.base == 'adamw':
      return optax.adamw(schedule, weight_decay=1e-2)
    return optax.chain(
      optax.add_decayed_weights(5e-4),
      optax.sgd(schedule, momentum=_MOMENTUM),
    )


_SGD_RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
_CNN = functools.partial(models.CNN, widths=(16, 32, 32))
_ATTENTION = functools.partial(
  models.ViT, width=32, depth=1, heads=4, hidden=64, patch=2
)
_DIGITS = Problem(
  title='digits, conv network',
  dataset='digits',
  model=_CNN,
  examples=200,
  steps=400,
  batch_size=50,
  base='sgd',
  learning_rates=(*_SGD_RATES, 3.0),
)
_MNIST1D = Problem(
  title='MNIST-1D, dense network',
  dataset='mnist1d',
  model=models.MLP,
  examples=1000,
  steps=1000,
  batch_size=100,
  base='sgd',
  learning_rates=_SGD_RATES,
)

PROBLEMS = {
  'digits': _DIGITS,
  'digits_noise20': dataclasses.replace(
    _DIGITS, title='digits, 20 % wrong labels', label_noise=0.2
  ),
  'digits_noise40': dataclasses.replace(
    _DIGITS, title='digits, 40 % wrong labels', label_noise=0.4
  ),
  'mnist1d': _MNIST1D,
  'mnist1d_noise20': dataclasses.replace(
    _MNIST1D, title='MNIST-1D, 20 % wrong labels', label_noise=0.2
  ),
  'mnist1d_noise40': dataclasses.replace(
    _MNIST1D, title='MNIST-1D, 40 % wrong labels', label_noise=0.4
  ),
  'digits_attention': Problem(
    title='digits, attention',
    dataset='digits',
    model=_ATTENTION,
    examples=400,
    steps=400,
    batch_size=50,
    base='adamw',
    learning_rates=(1e-3, 3e-3, 1e-2, 3e-2),
  ),
}


@functools.cache
def load(name: str) -> datasets.Dataset:
  """Returns all examples of a dataset."""
  return datasets.load(name)


def draw(
  key: jax.Array, pool: datasets.Batch, problem: Problem, classes: int
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
  """Returns training and validation examples, drawn without replacement."""
  order_key, noise_key = jax.random.split(key)
  count = len(pool['labels'])
  inputs, labels = (
    jnp.asarray(pool[name])[jax.random.permutation(order_key, count)]
    for name in ('inputs', 'labels')
  )
  shift = jax.random.randint(noise_key, (count,), 1, classes)
  last = min(count, problem.examples + _MOST_VALIDATING)
  parts = []
  for start, end in ((0, problem.examples), (problem.examples, last)):
    # The examples are already in random order.
    position = jnp.arange(end - start)
    wrong = position < np.round(problem.label_noise * (end - start))
    part = labels[start:end]
    noisy = jnp.where(wrong, (part + shift[start:end]) % classes, part)
    parts.append({'inputs': inputs[start:end], 'labels': noisy})
  return parts[0], parts[1]
