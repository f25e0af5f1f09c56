"""Models in Flax linen."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from optax_sam.train.models import imported
from optax_sam.train.models.resnet import ResNet
from optax_sam.train.models.small import CNN, MLP
from optax_sam.train.models.vit import ViT
from optax_sam.train.models.wide_resnet import WideResNet

__all__ = [
  'CNN',
  'MLP',
  'NAMES',
  'Model',
  'ResNet',
  'ViT',
  'WideResNet',
  'build',
]

Model = MLP | CNN | ResNet | WideResNet | ViT

NAMES = ('mlp', 'cnn', 'resnet18', 'resnet50', 'wideresnet28x10', 'vit_s16')

_SMALL_IMAGE = 64


def build(
  name: str,
  classes: int,
  input_shape: Sequence[int],
  *,
  dtype: Any = jnp.float32,
  axis_name: str | None = None,
) -> Any:
  """Returns a model by name, or one of the user.

  Built-in models are called as `model.apply(variables, inputs, train=...,
  ...)` and return float32 logits. Models with batch norm have the collection
  `batch_stats`; dropout needs the key `dropout`. `model.clone(field=...)`
  changes other fields.

  >>> import jax
  >>> from optax_sam.train import models
  >>> model = models.build('resnet18', 10, (32, 32, 3))
  >>> images = jax.ShapeDtypeStruct((1, 32, 32, 3), 'float32')
  >>> init = lambda key, images: model.init(key, images, train=False)
  >>> variables = jax.eval_shape(init, jax.random.key(0), images)
  >>> sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
  11173962

  Args:
    name: one of `NAMES`, or a reference as in `imported.build`.
    classes: number of classes.
    input_shape: shape of one example, channels last. `mlp` takes any shape,
      `cnn` images or 1-D signals, the others images with any number of
      channels; the sides for `vit_s16` must be multiples of 16.
    dtype: dtype of the computation except for the head; parameters and
      statistics are float32.
    axis_name: name of the mapped axis over which batch norm averages its
      statistics. Needed only inside `jax.shard_map` and the like; under
      `jax.jit` the batch is global.

  Returns:
    The model.

  Raises:
    ValueError: if the model is unknown or doesn't take such examples.
  """
  if ':' in name:
    return imported.build(name, classes)
  norms = {'dtype': dtype, 'axis_name': axis_name}
  if name == 'mlp':
    return MLP(classes, dtype=dtype)
  if name == 'cnn':
    return CNN(classes, kernel=5 if len(input_shape) == 2 else 3, **norms)
  if name not in NAMES:
    msg = f'model {name!r} is unknown; choose one of {", ".join(NAMES)}'
    raise ValueError(msg)
  if len(input_shape) != 3:
    msg = (
      f'model {name!r} takes images of shape (height, width, channels), not '
      f'examples of shape {tuple(input_shape)}; choose mlp or cnn'
    )
    raise ValueError(msg)
  if name == 'vit_s16':
    return ViT(classes, dtype=dtype)
  if name == 'wideresnet28x10':
    return WideResNet(classes, **norms)
  small = min(input_shape[:2]) < _SMALL_IMAGE
  if name == 'resnet18':
    return ResNet(classes, small_images=small, **norms)
  return ResNet(
    classes, (3, 4, 6, 3), bottleneck=True, small_images=small, **norms
  )
