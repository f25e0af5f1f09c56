"""Vision transformers."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import optax_sam


class EncoderBlock(nn.Module):
  """Self-attention and an MLP, each after a layer norm; see `ViT`."""

  heads: int
  hidden: int
  dtype: Any

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Returns the tokens after the block."""
    width = inputs.shape[-1]
    norm = functools.partial(nn.LayerNorm, dtype=self.dtype)
    xavier = nn.initializers.xavier_uniform()
    dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=xavier)
    x = norm(name='attention_norm')(inputs)
    # Query, key and value are dense layers over all heads, so that their biases
    # have one axis and get no weight decay.
    query, key, value = (
      dense(width, name=name)(x).reshape(*x.shape[:-1], self.heads, -1)
      for name in ('query', 'key', 'value')
    )
    # cuDNN's attention has no second derivative, which sharpness needs.
    x = jax.nn.dot_product_attention(query, key, value, implementation='xla')
    attended = inputs + dense(width, name='out')(x.reshape(inputs.shape))
    x = norm(name='perceptron_norm')(attended)
    x = nn.gelu(dense(self.hidden, name='hidden')(x))
    return attended + dense(width, name='result')(x)


class ViT(nn.Module):
  """A vision transformer (Dosovitskiy et al., 2020): S/16 by default.

  https://arxiv.org/abs/2010.11929. This is the plain form of Beyer et al.,
  2022, https://arxiv.org/abs/2205.01580: fixed positions, the mean of all
  tokens instead of a class token, a linear head that starts at zero, no
  dropout.

  `width` is the number of channels of a token, a multiple of 4 and of `heads`;
  `hidden` that of the hidden layer of each MLP. `patch` is the side of a patch;
  it must divide the sides of the images. Layer norm and softmax are float32.
  """

  classes: int
  width: int = 384
  depth: int = 12
  heads: int = 6
  hidden: int = 1536
  patch: int = 16
  dtype: Any = jnp.float32
  convolve: Callable[..., jax.Array] = optax_sam.conv_general_dilated

  @nn.compact
  def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
    """Returns the logits of normalized images, channels last."""
    del train  # there is no dropout
    sides, width, heads = inputs.shape[1:3], self.width, self.heads
    if any(side % self.patch for side in sides):
      msg = (
        f'patch must divide the sides of the images, {sides}, not {self.patch}'
      )
      raise ValueError(msg)
    if width % 4 or width % heads:
      msg = f'width must be a multiple of 4 and of heads={heads}, not {width}'
      raise ValueError(msg)
    x = nn.Conv(
      self.width,
      (self.patch, self.patch),
      (self.patch, self.patch),
      padding='VALID',
      dtype=self.dtype,
      conv_general_dilated=self.convolve,
      name='patches',
    )(inputs)
    x = x + jnp.asarray(_positions(*x.shape[1:]), x.dtype)
    x = x.reshape(len(x), -1, self.width)
    for number in range(self.depth):
      name = f'block{number + 1}'
      x = EncoderBlock(self.heads, self.hidden, self.dtype, name=name)(x)
    x = nn.LayerNorm(dtype=self.dtype, name='last_norm')(x)
    x = jnp.mean(x, axis=1, dtype=jnp.float32)
    zeros = nn.initializers.zeros
    return nn.Dense(self.classes, kernel_init=zeros, name='head')(x)


def _positions(rows: int, columns: int, width: int) -> np.ndarray:
  """Sines and cosines with periods from 2 pi to 20,000 pi patches.

  Shape (rows, columns, width): a quarter of the channels each for the sine and
  cosine along a row, and along a column.
  """
  frequencies = 10_000.0 ** -np.linspace(0.0, 1.0, width // 4)
  row, column = np.indices((rows, columns))[..., None] * frequencies
  waves = (np.sin(column), np.cos(column), np.sin(row), np.cos(row))
  return np.concatenate(waves, axis=-1).astype(np.float32)
