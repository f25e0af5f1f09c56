"""The nets that the benchmarks train: dense, attention, convolutions.

Each comes in two sizes, with random examples: what is measured is time, not
accuracy.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_sam

CLASSES = 10

Statistics = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
  """A net and its batches.

  Attributes:
    name: the kind of net and its size.
    model: called with inputs and `train`.
    batches: each a mapping with `inputs` and `labels`.
  """

  name: str
  model: nn.Module
  batches: tuple[Mapping[str, jax.Array], ...]

  def init(self) -> tuple[optax.Params, Statistics]:
    """Returns new parameters and running statistics."""
    inputs = self.batches[0]['inputs'][:1]

    @jax.jit
    def init():
      return self.model.init(jax.random.key(0), inputs, train=False)

    variables = dict(init())
    return variables.pop('params'), variables

  def losses(
    self, params: Any, statistics: Statistics, batch: Any, train: bool = True
  ) -> tuple[jax.Array, Statistics]:
    """Returns one loss an example, and the new running statistics."""
    logits, statistics = self.model.apply(
      {'params': params, **statistics},
      batch['inputs'],
      train=train,
      mutable=list(statistics) if train else [],
    )
    values = optax.softmax_cross_entropy_with_integer_labels(
      logits, batch['labels']
    )
    return values, statistics

  def loss(
    self, params: Any, statistics: Statistics, batch: Any
  ) -> tuple[jax.Array, Statistics]:
    """Returns the mean loss in training mode, and the new statistics."""
    losses, statistics = self.losses(params, statistics, batch)
    return jnp.mean(losses), statistics


class Dense(nn.Module):
  """Hidden layers of one width."""

  width: int
  depth: int

  @nn.compact
  def __call__(self, x, *, train):
    """Returns the logits of every example."""
    del train
    for _ in range(self.depth):
      x = nn.relu(nn.Dense(self.width)(x))
    return nn.Dense(CLASSES)(x)


class Transformer(nn.Module):
  """A small encoder of tokens with layer norm in front of every block."""

  width: int
  depth: int
  heads: int
  vocabulary: int = 64

  @nn.compact
  def __call__(self, tokens, *, train):
    """Returns the logits of every example."""
    del train
    x = nn.Embed(self.vocabulary, self.width)(tokens)
    shape = (tokens.shape[1], self.width)
    x += self.param('position', nn.initializers.normal(0.02), shape)
    for _ in range(self.depth):
      y = nn.LayerNorm()(x)
      x += nn.MultiHeadDotProductAttention(num_heads=self.heads)(y, y)
      y = nn.Dense(4 * self.width)(nn.LayerNorm()(x))
      x += nn.Dense(self.width)(nn.gelu(y))
    return nn.Dense(CLASSES)(jnp.mean(nn.LayerNorm()(x), axis=1))


class Convolutional(nn.Module):
  """Convolutions with batch norm; every one but the first halves the image."""

  widths: tuple[int, ...]

  @nn.compact
  def __call__(self, x, *, train):
    """Returns the logits of every example."""
    for layer, width in enumerate(self.widths):
      strides = (1, 1) if layer == 0 else (2, 2)
      x = nn.Conv(
        width,
        (3, 3),
        strides,
        use_bias=False,
        conv_general_dilated=optax_sam.conv_general_dilated,
      )(x)
      x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
    return nn.Dense(CLASSES)(jnp.mean(x, axis=(1, 2)))


# Of each problem, so that no step sees what the last one saw.
_BATCHES = 8

# Sizes that the programs of other frameworks are built from, too. Batches can
# be divided into thirds, quarters and micro-batches.
SIZES: dict[str, dict[str, Any]] = {
  'dense, small': {'kind': 'dense', 'width': 256, 'depth': 3, 'batch': 120},
  'dense, large': {'kind': 'dense', 'width': 1024, 'depth': 4, 'batch': 240},
  'transformer, small': {
    'kind': 'transformer',
    'width': 64,
    'depth': 2,
    'heads': 4,
    'length': 32,
    'batch': 36,
  },
  'transformer, large': {
    'kind': 'transformer',
    'width': 128,
    'depth': 4,
    'heads': 4,
    'length': 32,
    'batch': 36,
  },
  'conv, small': {'kind': 'conv', 'widths': (32, 64), 'side': 8, 'batch': 120},
  'conv, large': {
    'kind': 'conv',
    'widths': (32, 64, 128),
    'side': 16,
    'batch': 120,
  },
}
FEATURES = 64


def build(name: str) -> Problem:
  """Returns the problem of a name in `SIZES`."""
  size = SIZES[name]
  model = {
    'dense': lambda: Dense(size['width'], size['depth']),
    'transformer': lambda: Transformer(
      size['width'], size['depth'], size['heads']
    ),
    'conv': lambda: Convolutional(size['widths']),
  }[size['kind']]()
  random = np.random.default_rng(0)
  batches = tuple(_batch(random, size) for _ in range(_BATCHES))
  return Problem(name, model, batches)


def _batch(
  random: np.random.Generator, size: Mapping[str, Any]
) -> Mapping[str, jax.Array]:
  count = size['batch']
  normal: Callable[..., np.ndarray] = functools.partial(
    lambda *shape: random.normal(size=shape).astype(np.float32), count
  )
  inputs = {
    'dense': lambda: normal(FEATURES),
    'transformer': lambda: random.integers(64, size=(count, size['length'])),
    'conv': lambda: normal(size['side'], size['side'], 3),
  }[size['kind']]()
  labels = random.integers(CLASSES, size=count)
  return {
    'inputs': jnp.asarray(inputs),
    'labels': jnp.asarray(labels, jnp.int32),
  }
