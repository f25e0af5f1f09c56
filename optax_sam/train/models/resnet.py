"""Residual networks."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import optax_sam
from optax_sam.train.models.layers import Layers, logits_of_images


class BasicBlock(nn.Module):
  """Two convolutions of 3 x 3 with a residual connection.

  Attributes:
    width: channels of the convolutions and of the result.
    stride: stride of the first convolution.
    layers: settings of the layers.
  """

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

  Attributes:
    width: channels of the first two convolutions, a quarter of the output's.
    stride: stride of the convolution of 3 x 3.
    layers: settings of the layers.
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


class ResNet(nn.Module):
  """A residual network, version 1.5.

  The defaults give 18 layers; `blocks=(3, 4, 6, 3), bottleneck=True` gives 50.
  In a bottleneck the paper puts the stride into the first convolution; here it
  is in that of 3 x 3, which reads every pixel. As in later work (Goyal et al.,
  https://arxiv.org/abs/1706.02677, 2017) the last scale of each block starts at
  zero, so that a block starts as the identity. For images below 64 pixels the
  first convolution has no stride.

  Number of parameters, without batch-norm statistics, for 1000 classes of large
  color images: 11,689,512 with 18 layers and 25,557,032 with 50.

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
    """Returns the logits, one row per example.

    Args:
      inputs: normalized images, shape (examples, height, width, channels).
      train: whether to use the statistics of the batch and to update the
        running statistics.
    """
    layers = Layers(train, self.dtype, self.axis_name, self.convolve)
    side, stride = (3, 1) if self.small_images else (7, 2)
    x = layers.convolution(self.width, side, stride, name='stem')(inputs)
    x = nn.relu(layers.batch_norm(name='stem_norm')(x))
    if not self.small_images:
      x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
    block = BottleneckBlock if self.bottleneck else BasicBlock
    for stage, count in enumerate(self.blocks):
      for number in range(count):
        stride = 2 if stage > 0 and number == 0 else 1
        name = f'stage{stage + 1}_block{number + 1}'
        x = block(self.width * 2**stage, stride, layers, name=name)(x)
    return logits_of_images(x, self.classes)


def _joined(
  inputs: jax.Array, branch: jax.Array, stride: int, layers: Layers
) -> jax.Array:
  """Adds the residual connection, projected if shapes differ."""
  branch = layers.batch_norm(scale_init=nn.initializers.zeros)(branch)
  if inputs.shape != branch.shape:
    inputs = layers.convolution(branch.shape[-1], 1, stride, name='projection')(
      inputs
    )
    inputs = layers.batch_norm(name='projection_norm')(inputs)
  return nn.relu(inputs + branch)
