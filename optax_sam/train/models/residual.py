"""Residual networks: ResNet and WideResNet."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import optax_sam

# Twice the variance, because a ReLU halves it.
_HE_NORMAL = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')
_WIDE_STAGES = 3


@dataclasses.dataclass(frozen=True)
class Layers:
  """Creates the layers of a network; for the fields see `ResNet`."""

  train: bool
  dtype: Any
  axis_name: str | None
  convolve: Callable[..., jax.Array]

  def convolution(
    self, features: int, side: int, stride: int = 1, **settings: Any
  ) -> nn.Conv:
    """Returns a convolution with symmetric padding."""
    return nn.Conv(
      features,
      (side, side),
      (stride, stride),
      padding=side // 2,
      use_bias=False,
      dtype=self.dtype,
      kernel_init=_HE_NORMAL,
      conv_general_dilated=self.convolve,
      **settings,
    )

  def batch_norm(self, **settings: Any) -> nn.BatchNorm:
    """Returns a batch norm."""
    return nn.BatchNorm(
      use_running_average=not self.train,
      momentum=0.9,
      epsilon=1e-5,
      dtype=self.dtype,
      axis_name=self.axis_name,
      **settings,
    )


class BasicBlock(nn.Module):
  """Two convolutions of 3 x 3 with a residual connection."""

  width: int
  stride: int
  layers: Layers

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Returns the features after the block."""
    layers = self.layers
    x = layers.convolution(self.width, 3, self.stride)(inputs)
    x = nn.relu(layers.batch_norm()(x))
    x = layers.convolution(self.width, 3)(x)
    return _joined(inputs, x, self.stride, layers)


class BottleneckBlock(nn.Module):
  """Convolutions of 1 x 1, 3 x 3 and 1 x 1 with a residual connection.

  The last one has four times the channels of the others.
  """

  width: int
  stride: int
  layers: Layers

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Returns the features after the block."""
    layers = self.layers
    x = layers.convolution(self.width, 1)(inputs)
    x = nn.relu(layers.batch_norm()(x))
    x = layers.convolution(self.width, 3, self.stride)(x)
    x = nn.relu(layers.batch_norm()(x))
    x = layers.convolution(4 * self.width, 1)(x)
    return _joined(inputs, x, self.stride, layers)


class WideBlock(nn.Module):
  """Two convolutions of 3 x 3, each after batch norm and ReLU."""

  width: int
  stride: int
  dropout: float
  layers: Layers

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Returns the features after the block."""
    layers, width = self.layers, self.width
    x = nn.relu(layers.batch_norm()(inputs))
    if inputs.shape[-1] != width or self.stride > 1:
      project = layers.convolution(width, 1, self.stride, name='projection')
      inputs = project(x)
    x = layers.convolution(width, 3, self.stride)(x)
    x = nn.relu(layers.batch_norm()(x))
    x = nn.Dropout(self.dropout, deterministic=not layers.train)(x)
    return inputs + layers.convolution(width, 3)(x)


class ResNet(nn.Module):
  """A residual network, version 1.5.

  The defaults give 18 layers; `blocks=(3, 4, 6, 3), bottleneck=True` gives 50.
  In a bottleneck the paper puts the stride into the first convolution; here it
  is in that of 3 x 3, which reads every pixel. As in later work (Goyal et al.,
  https://arxiv.org/abs/1706.02677, 2017) the last scale of each block starts at
  zero, so that a block starts as the identity.

  References:
    He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition,
    https://arxiv.org/abs/1512.03385, 2015.

  Attributes:
    classes: number of classes.
    blocks: number of blocks of each stage; all but the first stage halve the
      sides and double the channels.
    bottleneck: whether the blocks are bottlenecks.
    width: channels of the first convolution and of the first stage (in a
      bottleneck, of the narrow convolutions).
    small_images: whether the first convolution is 3 x 3 without stride and
      pooling, instead of 7 x 7 with both.
    dtype: dtype of the computation; parameters, statistics and logits are
      float32.
    axis_name: name of the mapped axis over which statistics are averaged,
      needed only inside `jax.shard_map` or `jax.vmap`.
    convolve: the convolution; that of JAX is slow inside a conditional on CPU.
  """

  classes: int
  blocks: Sequence[int] = (2, 2, 2, 2)
  bottleneck: bool = False
  width: int = 64
  small_images: bool = False
  dtype: Any = jnp.float32
  axis_name: str | None = None
  convolve: Callable[..., jax.Array] = optax_sam.conv_general_dilated

  @nn.compact
  def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
    """Returns the logits of normalized images, channels last."""
    layers = Layers(train, self.dtype, self.axis_name, self.convolve)
    side, stride = (3, 1) if self.small_images else (7, 2)
    x = layers.convolution(self.width, side, stride, name='stem')(inputs)
    x = nn.relu(layers.batch_norm(name='stem_norm')(x))
    if not self.small_images:
      x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
    block = BottleneckBlock if self.bottleneck else BasicBlock
    for stage, number, stride in _places(self.blocks):
      name = f'stage{stage + 1}_block{number + 1}'
      x = block(self.width * 2**stage, stride, layers, name=name)(x)
    return _logits(x, self.classes)


class WideResNet(nn.Module):
  """A wide residual network: WRN-28-10 by default.

  Variants differ in biases and in the projection in the first block of a stage.
  This one is that of the authors' code: the projection is a convolution of 1 x
  1 after the block's first batch norm and ReLU; no convolution has a bias. It
  has 36,479,194 parameters for 10 classes of color images.

  References:
    Zagoruyko, Komodakis, Wide Residual Networks,
    https://arxiv.org/abs/1605.07146, 2016.

  Attributes:
    classes: number of classes.
    depth: number of layers, 6 blocks + 4.
    widening: factor of the channels, which are 16, 32 and 64 at 1.
    dropout: fraction of the units that are dropped inside each block.
    dtype: see `ResNet`.
    axis_name: see `ResNet`.
    convolve: see `ResNet`.
  """

  classes: int
  depth: int = 28
  widening: int = 10
  dropout: float = 0.0
  dtype: Any = jnp.float32
  axis_name: str | None = None
  convolve: Callable[..., jax.Array] = optax_sam.conv_general_dilated

  @nn.compact
  def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
    """Returns the logits of normalized images, channels last.

    Raises:
      ValueError: if the depth is not 4 more than a multiple of 6.
    """
    blocks, rest = divmod(self.depth - 4, 2 * _WIDE_STAGES)
    if rest or blocks < 1:
      msg = f'depth must be 4 more than a multiple of 6, not {self.depth}'
      raise ValueError(msg)
    layers = Layers(train, self.dtype, self.axis_name, self.convolve)
    x = layers.convolution(16, 3, name='stem')(inputs)
    for stage, number, stride in _places([blocks] * _WIDE_STAGES):
      width = 16 * self.widening * 2**stage
      name = f'stage{stage + 1}_block{number + 1}'
      x = WideBlock(width, stride, self.dropout, layers, name=name)(x)
    x = nn.relu(layers.batch_norm(name='last_norm')(x))
    return _logits(x, self.classes)


def _places(blocks: Sequence[int]) -> list[tuple[int, int, int]]:
  """Returns stage, number and stride of each block."""
  return [
    (stage, number, 2 if stage > 0 and number == 0 else 1)
    for stage, count in enumerate(blocks)
    for number in range(count)
  ]


def _joined(
  inputs: jax.Array, branch: jax.Array, stride: int, layers: Layers
) -> jax.Array:
  """Adds the residual connection, projected if shapes differ."""
  branch = layers.batch_norm(scale_init=nn.initializers.zeros)(branch)
  if inputs.shape != branch.shape:
    project = layers.convolution(branch.shape[-1], 1, stride, name='projection')
    inputs = layers.batch_norm(name='projection_norm')(project(inputs))
  return nn.relu(inputs + branch)


def _logits(x: jax.Array, classes: int) -> jax.Array:
  """Returns the logits of features (examples, height, width, channels).

  All in float32: it is cheap, and the loss must resolve the small difference
  that an ascent step makes.
  """
  x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
  return nn.Dense(classes, dtype=jnp.float32, name='head')(x)
