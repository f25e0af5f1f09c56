"""Wide residual networks, for images as small as CIFAR."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import optax_sam
from optax_sam.train.models.layers import Layers, logits_of_images

_STAGES = 3


class WideBlock(nn.Module):
  """Two convolutions of 3 x 3, each after batch norm and ReLU.

  Attributes:
    width: channels of the convolutions and of the result.
    stride: stride of the first convolution.
    dropout: fraction of the units that are dropped between the convolutions.
    layers: settings of the layers.
  """

  width: int
  stride: int
  dropout: float
  layers: Layers

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Returns the features after the block."""
    layers = self.layers
    x = nn.relu(layers.batch_norm()(inputs))
    if inputs.shape[-1] != self.width or self.stride > 1:
      inputs = layers.convolution(
        self.width, 1, self.stride, name='projection'
      )(x)
    x = layers.convolution(self.width, 3, self.stride)(x)
    x = nn.relu(layers.batch_norm()(x))
    x = nn.Dropout(self.dropout, deterministic=not layers.train)(x)
    return inputs + layers.convolution(self.width, 3)(x)


class WideResNet(nn.Module):
  """A wide residual network: WRN-28-10 by default.

  Several variants are in use; they differ in biases and in the projection in
  the first block of a stage. This one is that of the authors' code: the
  projection is a convolution of 1 x 1 after the block's first batch norm and
  ReLU, and no convolution has a bias. It has 36,479,194 parameters for 10
  classes of color images, the 36.5 million of the paper. With zero-padded
  channels instead of a projection it would have 36,220,634, and with biases on
  all convolutions 36,489,290.

  References:
    Zagoruyko, Komodakis, Wide Residual Networks,
    https://arxiv.org/abs/1605.07146, 2016.

  Attributes:
    classes: number of classes.
    depth: number of layers, 6 blocks + 4.
    widening: factor of the channels, which are 16, 32 and 64 at 1.
    dropout: fraction of the units that are dropped inside each block.
    dtype: dtype of the computation; parameters, statistics and logits are
      float32.
    axis_name: name of the mapped axis over which statistics are averaged,
      needed only inside `jax.shard_map` or `jax.vmap`.
    convolve: the convolution; that of JAX is slow inside a conditional on CPU.
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
    """Returns the logits, one row per example.

    Args:
      inputs: normalized images, shape (examples, height, width, channels).
      train: whether to drop units, to use the statistics of the batch, and to
        update the running statistics.

    Raises:
      ValueError: if the depth is not 4 more than a multiple of 6.
    """
    blocks, rest = divmod(self.depth - 4, 2 * _STAGES)
    if rest or blocks < 1:
      msg = f'depth must be 4 more than a multiple of 6, not {self.depth}'
      raise ValueError(msg)
    layers = Layers(train, self.dtype, self.axis_name, self.convolve)
    x = layers.convolution(16, 3, name='stem')(inputs)
    for stage in range(_STAGES):
      width = 16 * self.widening * 2**stage
      for number in range(blocks):
        stride = 2 if stage > 0 and number == 0 else 1
        name = f'stage{stage + 1}_block{number + 1}'
        x = WideBlock(width, stride, self.dropout, layers, name=name)(x)
    x = nn.relu(layers.batch_norm(name='last_norm')(x))
    return logits_of_images(x, self.classes)
