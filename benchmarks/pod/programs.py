"""The trainer's steps on ImageNet, compiled for absent TPUs."""

import dataclasses
import functools
import pathlib
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

from benchmarks.pod import hlo, steps
from optax_sam.train import models
from optax_sam.train.config import arguments, configs
from optax_sam.train.data import imagenet
from optax_sam.train.loop import objectives, task
from optax_sam.train.models import functions

_RECIPES = pathlib.Path(__file__).parents[2] / 'recipes' / 'imagenet'
# The base recipe of a model; other methods differ only in the method.
_BASE_RECIPES = {'resnet50': 'resnet50_sgd', 'vit_s16': 'vit_s16_adamw'}
_IMAGES = 1_281_167
_CLASSES = 1000


@dataclasses.dataclass(frozen=True)
class Report:
  """The compiler's report on a function, per device.

  Attributes:
    flops: operations; of a conditional those of its costliest branch.
    peak_bytes: largest use of memory at any time.
    structure: collectives, conditionals, products.
  """

  flops: float
  peak_bytes: int
  structure: hlo.Structure


def devices(topology: str) -> list[Any]:
  """Returns the absent devices of `v5e:16x16`, or of two slices `...*2`."""
  name, _, slices = topology.partition('*')
  settings: dict[str, Any] = {'num_slices': int(slices)} if slices else {}
  if name.startswith('v4'):
    settings['chip_config_name'] = 'megacore'  # one device per chip
  found = topologies.get_topology_desc(
    topology_name=name, platform='tpu', **settings
  )
  return list(found.devices)


def recipe(model: str, method: str) -> configs.TrainConfig:
  """Returns the flags of a recipe, or of the base recipe with a method."""
  path = _RECIPES / f'{model}_{method}.json'
  flags: list[str] = []
  if not path.exists():
    path = _RECIPES / f'{_BASE_RECIPES[model]}.json'
    flags = [] if method == 'sgd' else ['--method', method]
  config = arguments.parse(['train', '--config', str(path), *flags])
  steps_per_epoch = _IMAGES // config.batch_size
  return dataclasses.replace(
    config, steps=config.epochs * steps_per_epoch, epochs=None
  )


def _task(config: configs.TrainConfig) -> task.Task:
  """Returns the task of a recipe, without images."""
  image = (config.image_size, config.image_size, 3)
  sample = {
    'inputs': np.broadcast_to(np.uint8(0), (config.batch_size, *image)),
    'labels': np.broadcast_to(np.int32(0), (config.batch_size,)),
  }
  dtype = jnp.dtype(config.dtype)
  images: Any = types.SimpleNamespace(
    batch_size=config.batch_size,
    train_examples=_IMAGES,
    sample=lambda: sample,
    normalize=functools.partial(imagenet.normalize, dtype=dtype),
  )
  module = models.build(config.model, _CLASSES, image, dtype=dtype)
  objective = objectives.build(label_smoothing=config.label_smoothing)
  return task.Task(functions.from_model(module), images, objective)


def report(lowered: Any, **options: Any) -> Report:
  """Compiles a function, and returns the compiler's report."""
  compiled = lowered.compile(**options)
  return Report(
    flops=compiled.cost_analysis()['flops'],
    peak_bytes=compiled.memory_analysis().peak_memory_in_bytes,
    structure=hlo.structure(compiled.as_text()),
  )


def compile_row(
  topology: str, model: str, name: str, optimization: str
) -> Report:
  """Compiles one row of the table, which takes minutes."""
  row = steps.Row.parse(name)
  config = recipe(model, row.method)
  level = 'O0' if optimization == 'O0' else 'UNKNOWN'
  jax.config.update('jax_optimization_level', level)
  found = report(steps.lower(_task(config), config, row, devices(topology)))
  jax.clear_caches()
  return found
