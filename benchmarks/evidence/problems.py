"""The problems: networks, data and training settings."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.fine_tuning import texts
from optax_sam.train import models
from optax_sam.train.data import datasets

# A run is this many parts of equal length, each followed by an evaluation.
PARTS = 8
_MOMENTUM = 0.9
_WINDOW = 64


class LanguageModel(nn.Module):
  """A causal transformer over bytes; logits of the next byte at each place."""

  width: int = 128
  depth: int = 5
  heads: int = 4

  @nn.compact
  def __call__(self, codes: jax.Array, *, train: bool) -> jax.Array:
    """Returns logits, shape (B, length, vocabulary)."""
    del train  # there is no dropout
    x = nn.Embed(texts.VOCABULARY, self.width)(codes)
    shape = (codes.shape[1], self.width)
    x += self.param('position', nn.initializers.normal(0.02), shape)
    mask = nn.make_causal_mask(codes)
    for _ in range(self.depth):
      y = nn.LayerNorm()(x)
      x += nn.MultiHeadDotProductAttention(num_heads=self.heads)(y, mask=mask)
      y = nn.Dense(4 * self.width)(nn.LayerNorm()(x))
      x += nn.Dense(self.width)(nn.gelu(y))
    return nn.Dense(texts.VOCABULARY)(nn.LayerNorm()(x))


class Quartered(nn.Module):
  """A network that reads squares of 2 x 2 pixels as channels.

  So its first convolution has a quarter of the positions.
  """

  network: nn.Module

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
    """Returns the logits."""
    count, height, width, channels = images.shape
    shape = (count, height // 2, 2, width // 2, 2, channels)
    parts = images.reshape(shape).transpose(0, 1, 3, 2, 4, 5)
    parts = parts.reshape(count, height // 2, width // 2, 4 * channels)
    return self.network(parts, train=train)


@dataclasses.dataclass(frozen=True)
class Problem:
  """A network with data and training settings.

  A seed draws training and validation examples, wrong labels in both, initial
  parameters and order. The test examples are always the same, with true labels.

  Attributes:
    title: name on the page.
    dataset: `fashion_mnist`, `digits`, `mnist1d` or `bible`.
    model: maps the number of classes to the network.
    examples: number of training examples.
    validation: number of validation examples.
    steps: number of steps, a multiple of `PARTS`.
    batch_size: number of examples in a batch.
    base: `sgd` or `adamw`, the base optimizer.
    learning_rate: where the search for that of the base optimizer starts.
    rho: where the search for the radius starts, for SAM.
    label_noise: fraction of wrong labels.
    is_text: whether the score is in bits per byte, not in accuracy.
    in_short: whether only the variants of the frontier run.
    in_appendix: whether it is left out of the means.
    trial_length: length of the trials, relative to a run.
    tuning_seeds: number of seeds of each trial.
    evaluated: largest number of training and of test examples to evaluate.
    measured: number of training examples for the measures of sharpness.
  """

  title: str
  dataset: str
  model: Callable[[int], nn.Module]
  examples: int
  validation: int
  steps: int
  batch_size: int
  base: str = 'sgd'
  learning_rate: float = 0.1
  rho: float = 0.1
  label_noise: float = 0.0
  is_text: bool = False
  in_short: bool = False
  in_appendix: bool = False
  trial_length: float = 0.5
  tuning_seeds: int = 1
  evaluated: int = 10_000
  measured: int = 256

  def optimizer(
    self, learning_rate: jax.Array, steps: jax.Array
  ) -> optax.GradientTransformation:
    """Returns the base optimizer, with a learning rate that decays to 0."""
    schedule = lambda count: (
      learning_rate * (1 + jnp.cos(jnp.pi * jnp.minimum(count / steps, 1))) / 2
    )
    if self.base == 'adamw':
      return optax.adamw(schedule, weight_decay=1e-2)
    return optax.chain(
      optax.add_decayed_weights(5e-4),
      optax.sgd(schedule, momentum=_MOMENTUM),
    )

  def score(self, loss: float, accuracy: float) -> float:
    """Returns the score, higher is better: see `unit`."""
    return -100 * loss / np.log(2) if self.is_text else 100 * accuracy

  @property
  def has_norms(self) -> bool:
    """Whether the network has normalization layers."""
    return getattr(self.model, 'func', self.model) is not models.MLP

  @property
  def unit(self) -> str:
    """The unit of a difference in score."""
    return 'hundredths of a bit per byte' if self.is_text else 'points'


_CONV = Problem(
  title='Fashion-MNIST 12k, conv net',
  dataset='fashion_mnist',
  model=lambda classes: Quartered(
    Quartered(
      models.ResNet(classes, blocks=(1, 1, 1), width=16, small_images=True)
    )
  ),
  examples=12_000,
  validation=4_000,
  steps=1_440,
  batch_size=100,
  in_short=True,
  trial_length=1.0,
)
_DIGITS = Problem(
  title='digits, 40 % wrong labels, conv net',
  dataset='digits',
  model=functools.partial(models.CNN, widths=(16, 32, 32)),
  examples=600,
  validation=400,
  steps=400,
  batch_size=50,
  learning_rate=0.01,
  label_noise=0.4,
  trial_length=1.0,
  tuning_seeds=4,
)

PROBLEMS = {
  'digits_noise': _DIGITS,
  'conv_noise': dataclasses.replace(
    _CONV,
    title='Fashion-MNIST 12k, 40 % wrong labels, conv net',
    steps=1_920,
    learning_rate=0.05,
    in_short=False,
    label_noise=0.4,
  ),
  'conv': _CONV,
  'vit': Problem(
    title='Fashion-MNIST 12k, vision transformer',
    dataset='fashion_mnist',
    model=functools.partial(
      models.ViT, width=64, depth=2, heads=4, hidden=128, patch=7
    ),
    examples=12_000,
    validation=4_000,
    steps=1_200,
    batch_size=100,
    base='adamw',
    learning_rate=2e-3,
    rho=0.02,
    in_short=True,
  ),
  'dense': Problem(
    title='Fashion-MNIST 60k, dense net',
    dataset='fashion_mnist',
    model=functools.partial(models.MLP, widths=(256, 256), dropout=0.0),
    examples=56_000,
    validation=4_000,
    steps=2_240,
    batch_size=200,
    trial_length=1.0,
  ),
  'text': Problem(
    title='King James Bible, language model',
    dataset='bible',
    model=lambda _: LanguageModel(),
    examples=9_600,
    validation=256,
    steps=200,
    batch_size=16,
    base='adamw',
    learning_rate=2e-3,
    rho=0.02,
    is_text=True,
    in_short=True,
    evaluated=512,
    measured=8,
  ),
  'mnist1d': Problem(
    title='MNIST-1D, dense net',
    dataset='mnist1d',
    model=models.MLP,
    examples=1_000,
    validation=1_000,
    steps=1_000,
    batch_size=100,
    learning_rate=0.03,
    in_short=True,
    in_appendix=True,
    trial_length=1.0,
  ),
}


class Pool(NamedTuple):
  """The examples from which a seed draws, and the test examples."""

  train: datasets.Batch
  test: datasets.Batch
  classes: int


@functools.cache
def load(name: str) -> Pool:
  """Returns the examples of a dataset."""
  if name == 'bible':
    found = texts.parts(texts.bible())
    train, test = _windows(found.training), _windows(found.test)
    return Pool(train, test, texts.VOCABULARY)
  dataset = datasets.load(name)
  return Pool(dataset.train, dataset.test, dataset.classes)


def _windows(codes: np.ndarray) -> dict[str, np.ndarray]:
  """Returns disjoint windows; the label of a byte is the next byte."""
  count = (len(codes) - 1) // _WINDOW
  cut = lambda start: (
    codes[start : start + count * _WINDOW]
    .reshape(count, _WINDOW)
    .astype(np.int32)
  )
  return {'inputs': cut(0), 'labels': cut(1)}


def draw(problem: Problem, seed: int) -> tuple[Any, Any]:
  """Returns training and validation examples, drawn without replacement."""
  random = np.random.default_rng([seed, 0])
  pool = load(problem.dataset)
  order = random.permutation(len(pool.train['labels']))
  parts = []
  for start, end in (
    (0, problem.examples),
    (problem.examples, problem.examples + problem.validation),
  ):
    rows = order[start:end]
    inputs, labels = (pool.train[key][rows] for key in ('inputs', 'labels'))
    if problem.label_noise:
      count = round(problem.label_noise * len(rows))
      wrong = random.permutation(len(rows))[:count]
      shift = random.integers(1, pool.classes, count)
      labels[wrong] = (labels[wrong] + shift) % pool.classes
    parts.append({'inputs': inputs, 'labels': labels})
  return parts[0], parts[1]


def order(problem: Problem, seed: int, steps: int) -> np.ndarray:
  """Returns the rows of each batch, in a new random order for each epoch."""
  random = np.random.default_rng([seed, 1])
  each = problem.examples // problem.batch_size
  epochs = [
    random.permutation(problem.examples)[: each * problem.batch_size]
    for _ in range(-(-steps // each))
  ]
  return np.concatenate(epochs).reshape(-1, problem.batch_size)[:steps]
