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
  """Self-attention and a perceptron, each after its layer norm.

  Attributes:
    heads: number of heads of the attention.
    hidden: width of the perceptron's hidden layer.
    dtype: what it computes in, but for layer norm and softmax.
  """

  heads: int
  hidden: int
  dtype: Any

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Returns the tokens after the block."""
    width = inputs.shape[-1]
    norm = functools.partial(nn.LayerNorm, dtype=self.dtype)
    dense = functools.partial(
      nn.Dense,
      dtype=self.dtype,
      kernel_init=nn.initializers.xavier_uniform(),
    )
    x = norm(name='attention_norm')(inputs)
    # Three layers for all heads together, as biases of several axes would be
    # taken for kernels and decay.
    query, key, value = (
      dense(width, name=name)(x).reshape(*x.shape[:-1], self.heads, -1)
      for name in ('query', 'key', 'value')
    )
    # The kernels of cuDNN have no second derivative, which sharpness needs.
    x = jax.nn.dot_product_attention(query, key, value, implementation='xla')
    attended = inputs + dense(width, name='out')(x.reshape(inputs.shape))
    x = norm(name='perceptron_norm')(attended)
    x = nn.gelu(dense(self.hidden, name='hidden')(x))
    return attended + dense(width, name='result')(x)


class ViT(nn.Module):
  """A vision transformer: S/16 by default.

  In the plain form of Beyer et al.: fixed positions, the mean of all tokens
  in place of one of their own for the class, a head of one layer that starts
  at zero, no dropout. The other papers learn positions and have that token,
  which makes 22,050,664 parameters for 1000 classes of images of 224 pixels;
  here they are 21,974,632.

  References:
    Dosovitskiy et al., An Image is Worth 16x16 Words: Transformers for Image
    Recognition at Scale, https://arxiv.org/abs/2010.11929, 2020.
    Steiner et al., How to train your ViT? Data, Augmentation, and
    Regularization in Vision Transformers, https://arxiv.org/abs/2106.10270,
    2021. (the size)
    Beyer, Zhai, Kolesnikov, Better plain ViT baselines for ImageNet-1k,
    https://arxiv.org/abs/2205.01580, 2022.

  Attributes:
    classes: number of classes.
    width: channels of a token, a multiple of 4 and of `heads`.
    depth: number of blocks.
    heads: number of heads of the attention.
    hidden: width of the hidden layer of each block's perceptron.
    patch: side of a patch in pixels; those of the images are multiples of it.
    dtype: what all but the head computes in; parameters, layer norm, softmax
      and logits are float32.
    convolve: what convolves; that of JAX is slow inside a conditional on CPU.
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
    """Returns the logits, one row per example.

    Args:
      inputs: normalized images, shape (examples, height, width, channels).
      train: changes nothing, as nothing is dropped.

    Raises:
      ValueError: if patches don't tile the images, or heads the width.
    """
    del train
    if any(side % self.patch for side in inputs.shape[1:3]):
      msg = (
        f'patch must divide the sides of the images, {inputs.shape[1:3]}, '
        f'not be {self.patch}'
      )
      raise ValueError(msg)
    if self.width % 4 or self.width % self.heads:
      msg = (
        f'width must be a multiple of 4 and of heads={self.heads}, '
        f'not {self.width}'
      )
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
      x = EncoderBlock(
        self.heads, self.hidden, self.dtype, name=f'block{number + 1}'
      )(x)
    x = nn.LayerNorm(dtype=self.dtype, name='last_norm')(x)
    x = jnp.mean(x, axis=1, dtype=jnp.float32)
    return nn.Dense(
      self.classes,
      dtype=jnp.float32,
      kernel_init=nn.initializers.zeros,
      name='head',
    )(x)


def _positions(rows: int, columns: int, width: int) -> np.ndarray:
  """Waves along both sides, from a period of 2 pi patches to 10,000 times it.

  Shape (rows, columns, width): a quarter of the channels each for the sine and
  cosine along a row, and along a column.
  """
  frequencies = 10_000.0 ** -np.linspace(0.0, 1.0, width // 4)
  row, column = np.indices((rows, columns))[..., None] * frequencies
  waves = (np.sin(column), np.cos(column), np.sin(row), np.cos(row))
  return np.concatenate(waves, axis=-1).astype(np.float32)
