"""Residual networks."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import optax_sam
from optax_sam.train.models.layers import Layers, logits_of_images


class BasicBlock(nn.Module):
  """Two convolutions of 3 x 3 around which the inputs pass.

  Attributes:
    width: channels of the convolutions and of the result.
    stride: of the first convolution.
    layers: what makes them.
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
  """Like `BasicBlock`, of 1 x 1, 3 x 3 and 1 x 1, the first two narrow.

  Attributes:
    width: channels of the narrow convolutions, a quarter of the result's.
    stride: of the convolution of 3 x 3.
    layers: what makes them.
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
  """A residual network in its version 1.5.

  The defaults are those of 18 layers; `blocks=(3, 4, 6, 3), bottleneck=True`
  are those of 50. The paper halves the sides in the first convolution of a
  bottleneck; here it is that of 3 x 3, which sees every pixel. As in later
  work (Goyal et al., https://arxiv.org/abs/1706.02677, 2017) the last scale of
  each block starts at zero, so that a block starts as the identity. Images
  below 64 pixels lose no resolution in the first convolution.

  Parameters, with the statistics of batch norm left aside: 11,689,512 with 18
  layers and 25,557,032 with 50, for 1000 classes of large color images.

  References:
    He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition,
    https://arxiv.org/abs/1512.03385, 2015.

  Attributes:
    classes: number of classes.
    blocks: number of blocks of each stage; all but the first stage halve the
      sides and double the channels.
    bottleneck: whether the blocks are bottlenecks.
    width: channels of the first convolution, and of the first stage's (in a
      bottleneck the narrow ones).
    small_images: whether the first convolution is of 3 x 3 without a stride
      or pooling, rather than of 7 x 7 with both.
    dtype: what all but the head computes in; parameters, statistics and logits
      are float32.
    axis_name: of the mapped axis whose batches share their statistics, needed
      inside of `jax.shard_map` or `jax.vmap` only.
    convolve: what convolves; that of JAX is slow inside a conditional on CPU.
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
      train: whether to take, and to learn, the statistics of the batch.
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
  """Ends a block, its inputs projected where they don't fit the branch."""
  branch = layers.batch_norm(scale_init=nn.initializers.zeros)(branch)
  if inputs.shape != branch.shape:
    inputs = layers.convolution(branch.shape[-1], 1, stride, name='projection')(
      inputs
    )
    inputs = layers.batch_norm(name='projection_norm')(inputs)
  return nn.relu(inputs + branch)
