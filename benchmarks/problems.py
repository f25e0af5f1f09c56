"""The networks of the benchmarks: dense, attention, convolutions.

Each has two sizes and random examples, because only time is measured.
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
  """A network and its batches.

  Attributes:
    name: kind and size of the network.
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
    """Returns per-example losses and the new running statistics."""
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
  """Hidden layers of equal width."""

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
  """A small token encoder with layer norm before every block."""

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
  """Convolutions with batch norm; all but the first halve the image."""

  widths: tuple[int, ...]
  convolve: Callable[..., jax.Array]

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
        conv_general_dilated=self.convolve,
      )(x)
      x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
    return nn.Dense(CLASSES)(jnp.mean(x, axis=(1, 2)))


# Number of batches, so that consecutive steps have different batches.
_BATCHES = 8

# Sizes, also for the networks of other frameworks. Batch sizes are divisible
# into thirds, quarters and micro-batches.
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


def build(
  name: str,
  convolve: Callable[..., jax.Array] = optax_sam.conv_general_dilated,
) -> Problem:
  """Returns the problem of a name in `SIZES`, with a convolution."""
  size = SIZES[name]
  model = {
    'dense': lambda: Dense(size['width'], size['depth']),
    'transformer': lambda: Transformer(
      size['width'], size['depth'], size['heads']
    ),
    'conv': lambda: Convolutional(size['widths'], convolve),
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
