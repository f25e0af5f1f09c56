"""Networks: MLP, CNN, ResNet and WideResNet.

`dtype` is that of the computation. Parameters, statistics and logits are
float32. `convolve` is the convolution; that of JAX is slow inside a conditional
on CPU.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import optax_sam

# Twice the variance, because a ReLU halves it.
_HE_NORMAL = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')
_WIDE_STAGES = 3


class MLP(nn.Module):
  """Dense layers of some widths, with dropout in training."""

  classes: int
  widths: Sequence[int] = (128, 128)
  dropout: float = 0.1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
    """Returns the logits, one row per example."""
    x = inputs.reshape(len(inputs), -1)
    for width in self.widths:
      x = nn.relu(nn.Dense(width, dtype=self.dtype)(x))
      x = nn.Dropout(self.dropout, deterministic=not train)(x)
    return nn.Dense(self.classes, dtype=jnp.float32)(x)


class CNN(nn.Module):
  """Convolutions with batch norm, for images or 1-D signals.

  `widths` are their channels; all but the first halve the sides.
  """

  classes: int
  widths: Sequence[int] = (32, 64, 64)
  kernel: int = 3
  dtype: Any = jnp.float32
  convolve: Callable[..., jax.Array] = optax_sam.conv_general_dilated

  @nn.compact
  def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
    """Returns the logits, one row per example."""
    x = inputs
    axes = x.ndim - 2
    for layer, width in enumerate(self.widths):
      x = nn.Conv(
        width,
        (self.kernel,) * axes,
        (1 if layer == 0 else 2,) * axes,
        use_bias=False,
        dtype=self.dtype,
        conv_general_dilated=self.convolve,
      )(x)
      x = nn.relu(nn.BatchNorm(not train, momentum=0.9, dtype=self.dtype)(x))
    x = jnp.mean(x, axis=tuple(range(1, 1 + axes)), dtype=jnp.float32)
    return nn.Dense(self.classes, dtype=jnp.float32)(x)


class Block(nn.Module):
  """Convolutions with a residual connection.

  Two of 3 x 3; in a bottleneck 1 x 1, 3 x 3 and 1 x 1, the last one with four
  times the channels of the others.
  """

  width: int
  stride: int
  layers: Any
  bottleneck: bool = False

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Returns the features after the block."""
    convolution, norm = self.layers
    features = self.width * (4 if self.bottleneck else 1)
    if self.bottleneck:
      x = nn.relu(norm()(convolution(self.width, 1)(inputs)))
      x = nn.relu(norm()(convolution(self.width, 3, self.stride)(x)))
      x = convolution(features, 1)(x)
    else:
      x = nn.relu(norm()(convolution(self.width, 3, self.stride)(inputs)))
      x = convolution(features, 3)(x)
    x = norm(scale_init=nn.initializers.zeros)(x)
    if inputs.shape != x.shape:
      project = convolution(features, 1, self.stride, name='projection')
      inputs = norm(name='projection_norm')(project(inputs))
    return nn.relu(inputs + x)


class WideBlock(nn.Module):
  """Two convolutions of 3 x 3, each after batch norm and ReLU."""

  width: int
  stride: int
  layers: Any
  dropout: float
  train: bool

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Returns the features after the block."""
    convolution, norm = self.layers
    x = nn.relu(norm()(inputs))
    if inputs.shape[-1] != self.width or self.stride > 1:
      project = convolution(self.width, 1, self.stride, name='projection')
      inputs = project(x)
    x = nn.relu(norm()(convolution(self.width, 3, self.stride)(x)))
    x = nn.Dropout(self.dropout, deterministic=not self.train)(x)
    return inputs + convolution(self.width, 3)(x)


class ResNet(nn.Module):
  """A residual network, version 1.5, of He et al., 2015.

  https://arxiv.org/abs/1512.03385. The defaults give 18 layers; `blocks=(3, 4,
  6, 3), bottleneck=True` gives 50. In a bottleneck the stride is in the
  convolution of 3 x 3, which reads every pixel, not in the first one. The last
  scale of each block starts at zero, so that a block starts as the identity
  (Goyal et al., https://arxiv.org/abs/1706.02677, 2017).

  `blocks` is their number for each stage; all but the first stage halve the
  sides and double the channels. `width` is that of the first stage (in a
  bottleneck, of the narrow convolutions). With `small_images` the first
  convolution is 3 x 3 without stride and pooling, instead of 7 x 7 with both.
  """

  classes: int
  blocks: Sequence[int] = (2, 2, 2, 2)
  bottleneck: bool = False
  width: int = 64
  small_images: bool = False
  dtype: Any = jnp.float32
  convolve: Callable[..., jax.Array] = optax_sam.conv_general_dilated

  @nn.compact
  def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
    """Returns the logits of normalized images, channels last."""
    layers = convolution, norm = _layers(self, train)
    side, stride = (3, 1) if self.small_images else (7, 2)
    x = convolution(self.width, side, stride, name='stem')(inputs)
    x = nn.relu(norm(name='stem_norm')(x))
    if not self.small_images:
      x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
    for name, stage, stride in _places(self.blocks):
      width = self.width * 2**stage
      x = Block(width, stride, layers, self.bottleneck, name=name)(x)
    return _logits(x, self.classes)


class WideResNet(nn.Module):
  """WRN-28-10 by default, of Zagoruyko and Komodakis, 2016.

  https://arxiv.org/abs/1605.07146. As in the authors' code, the projection in
  the first block of a stage is a convolution of 1 x 1 after the block's first
  batch norm and ReLU, and no convolution has a bias. `depth` is 6 blocks + 4;
  `widening` is the factor of the channels, which are 16, 32 and 64 at 1.
  """

  classes: int
  depth: int = 28
  widening: int = 10
  dropout: float = 0.0
  dtype: Any = jnp.float32
  convolve: Callable[..., jax.Array] = optax_sam.conv_general_dilated

  @nn.compact
  def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
    """Returns the logits of normalized images, channels last."""
    blocks, rest = divmod(self.depth - 4, 2 * _WIDE_STAGES)
    if rest or blocks < 1:
      msg = f'depth must be 4 more than a multiple of 6, not {self.depth}'
      raise ValueError(msg)
    layers = convolution, norm = _layers(self, train)
    x = convolution(16, 3, name='stem')(inputs)
    for name, stage, stride in _places([blocks] * _WIDE_STAGES):
      width = 16 * self.widening * 2**stage
      block = WideBlock(width, stride, layers, self.dropout, train, name=name)
      x = block(x)
    return _logits(nn.relu(norm(name='last_norm')(x)), self.classes)


def _layers(network: Any, train: bool) -> tuple[Any, Any]:
  """Returns functions that create convolutions and batch norms."""

  def convolution(
    features: int, side: int, stride: int = 1, name: str | None = None
  ) -> nn.Conv:
    return nn.Conv(
      features,
      (side, side),
      (stride, stride),
      padding=side // 2,
      use_bias=False,
      dtype=network.dtype,
      kernel_init=_HE_NORMAL,
      conv_general_dilated=network.convolve,
      name=name,
    )

  norm = functools.partial(
    nn.BatchNorm,
    use_running_average=not train,
    momentum=0.9,
    epsilon=1e-5,
    dtype=network.dtype,
  )
  return convolution, norm


def _places(blocks: Sequence[int]) -> list[tuple[str, int, int]]:
  """Returns name, stage and stride of each block."""
  return [
    (
      f'stage{stage + 1}_block{number + 1}',
      stage,
      2 if stage > 0 and number == 0 else 1,
    )
    for stage, count in enumerate(blocks)
    for number in range(count)
  ]


def _logits(x: jax.Array, classes: int) -> jax.Array:
  """Returns the logits of features (examples, height, width, channels)."""
  # In float32, so that the loss resolves the small change of an ascent step.
  x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
  return nn.Dense(classes, dtype=jnp.float32, name='head')(x)
