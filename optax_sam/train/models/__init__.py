"""Models in Flax linen."""

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from optax_sam.train.config.flags import MODELS as NAMES
from optax_sam.train.models import imported
from optax_sam.train.models.networks import CNN, MLP, ResNet, WideResNet
from optax_sam.train.models.vit import ViT

__all__ = ['CNN', 'MLP', 'NAMES', 'ResNet', 'ViT', 'WideResNet', 'build']

_SMALL_IMAGE = 64


def build(
  name: str,
  classes: int,
  input_shape: Sequence[int],
  *,
  dtype: Any = jnp.float32,
) -> Any:
  """Returns a model by name, or one of the user as in `imported.build`.

  The input shape is that of one example, channels last. `mlp` takes any shape,
  `cnn` images or 1-D signals, the others images; `vit_s16` needs sides that are
  multiples of 16. The dtype is that of the computation except for the head.

  >>> build('resnet18', 10, (32, 32, 3)).small_images
  True
  """
  if ':' in name:
    return imported.build(name, classes)
  if name not in NAMES:
    msg = f'model {name!r} is unknown; choose one of {", ".join(NAMES)}'
    raise ValueError(msg)
  axes = len(input_shape)
  if name != 'mlp' and axes not in ((2, 3) if name == 'cnn' else (3,)):
    taken = 'images or signals' if name == 'cnn' else 'images'
    msg = (
      f'model {name!r} takes {taken}, channels last, not examples of shape '
      f'{tuple(input_shape)}; choose mlp or your own'
    )
    raise ValueError(msg)
  small = min(input_shape[:2], default=0) < _SMALL_IMAGE
  residual = functools.partial(ResNet, small_images=small)
  makers = {
    'mlp': MLP,
    'cnn': functools.partial(CNN, kernel=5 if axes == 2 else 3),
    'vit_s16': ViT,
    'wideresnet28x10': WideResNet,
    'resnet18': residual,
    'resnet50': functools.partial(
      residual, blocks=(3, 4, 6, 3), bottleneck=True
    ),
  }
  return makers[name](classes, dtype=dtype)
