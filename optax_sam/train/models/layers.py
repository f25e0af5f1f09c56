"""Common settings of the layers of a residual network."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# Twice the variance, because a ReLU halves it.
_HE_NORMAL = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


@dataclasses.dataclass(frozen=True)
class Layers:
  """Creates the layers of a network with common settings.

  Attributes:
    train: whether batch norm uses the statistics of the batch.
    dtype: dtype of the computation; parameters and statistics are float32.
    axis_name: name of the mapped axis over which statistics are averaged.
    convolve: the convolution.
  """

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


def logits_of_images(x: jax.Array, classes: int) -> jax.Array:
  """Returns the logits of features (examples, height, width, channels).

  All in float32: it is cheap, and the loss must resolve the small difference
  that an ascent step makes.
  """
  x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
  return nn.Dense(classes, dtype=jnp.float32, name='head')(x)
