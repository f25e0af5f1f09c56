"""Models that train on two cores in a minute."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import optax_sam


class MLP(nn.Module):
  """Dense layers with dropout.

  Attributes:
    classes: number of classes.
    widths: width of each hidden layer.
    dropout: fraction of the units that are dropped in training.
    dtype: dtype of the hidden layers.
  """

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

  Attributes:
    classes: number of classes.
    widths: channels of each convolution; all but the first halve the sides.
    kernel: side of the kernels.
    dtype: dtype of the computation except for the head.
    axis_name: name of the mapped axis over which statistics are averaged.
    convolve: the convolution; that of JAX is slow inside a conditional on CPU.
  """

  classes: int
  widths: Sequence[int] = (32, 64, 64)
  kernel: int = 3
  dtype: Any = jnp.float32
  axis_name: str | None = None
  convolve: Callable[..., jax.Array] = optax_sam.conv_general_dilated

  @nn.compact
  def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
    """Returns the logits, one row per example."""
    x = inputs
    axes = x.ndim - 2
    for layer, width in enumerate(self.widths):
      stride = 1 if layer == 0 else 2
      x = nn.Conv(
        width,
        (self.kernel,) * axes,
        (stride,) * axes,
        use_bias=False,
        dtype=self.dtype,
        conv_general_dilated=self.convolve,
      )(x)
      x = nn.BatchNorm(
        not train, momentum=0.9, dtype=self.dtype, axis_name=self.axis_name
      )(x)
      x = nn.relu(x)
    x = jnp.mean(x, axis=tuple(range(1, 1 + axes)), dtype=jnp.float32)
    return nn.Dense(self.classes, dtype=jnp.float32)(x)
