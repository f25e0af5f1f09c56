"""Models in Flax linen."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

import optax_sam


class MLP(nn.Module):
  """Dense layers with dropout.

  Attributes:
    classes: number of classes.
    widths: width of each hidden layer.
    dropout: share of the units that are dropped in training.
  """

  classes: int
  widths: Sequence[int] = (128, 128)
  dropout: float = 0.1

  @nn.compact
  def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
    """Returns the logits, one row per example."""
    x = inputs.reshape(len(inputs), -1)
    for width in self.widths:
      x = nn.relu(nn.Dense(width)(x))
      x = nn.Dropout(self.dropout, deterministic=not train)(x)
    return nn.Dense(self.classes)(x)


class CNN(nn.Module):
  """Convolutions with batch norm, over images or over 1-D signals.

  Attributes:
    classes: number of classes.
    widths: channels of each convolution; all but the first halve the sides.
    kernel: side of the kernels.
    convolve: what convolves; that of JAX is slow inside a conditional on CPU.
  """

  classes: int
  widths: Sequence[int] = (32, 64, 64)
  kernel: int = 3
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
        conv_general_dilated=self.convolve,
      )(x)
      x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
      x = nn.relu(x)
    x = jnp.mean(x, axis=tuple(range(1, 1 + axes)))
    return nn.Dense(self.classes)(x)


def build(name: str, classes: int, input_shape: Sequence[int]) -> MLP | CNN:
  """Returns a model by name.

  Args:
    name: `mlp` or `cnn`.
    classes: number of classes.
    input_shape: shape of one example, channels last.
  """
  if name == 'mlp':
    return MLP(classes)
  if name == 'cnn':
    return CNN(classes, kernel=5 if len(input_shape) == 2 else 3)
  msg = f'model {name!r} is unknown; choose one of mlp, cnn'
  raise ValueError(msg)
