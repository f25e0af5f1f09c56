"""The trainer's steps on ImageNet, compiled for absent devices."""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.experimental import topologies
from jax.sharding import Mesh

from benchmarks import hlo, pod_steps
from optax_sam.train import models
from optax_sam.train.config import configs
from optax_sam.train.data import imagenet
from optax_sam.train.loop import objectives, task
from optax_sam.train.models import functions

_RECIPES = pathlib.Path(__file__).parents[1] / 'recipes' / 'imagenet'
# The base recipe of a model; other methods differ only in the method.
BASE_RECIPES = {'resnet50': 'resnet50_sgd', 'vit_s16': 'vit_s16_adamw'}
_IMAGES = 1_281_167


@dataclasses.dataclass(frozen=True)
class Topology:
  """Devices to compile for.

  Attributes:
    name: name in libtpu, such as `v5e:16x16`.
    slices: number of slices, connected by the data-center network.
  """

  name: str
  slices: int = 1

  @classmethod
  def parse(cls, text: str) -> 'Topology':
    """Parses `v5e:16x16`, or `v5e:16x16*2` for two slices."""
    name, _, slices = text.partition('*')
    return cls(name, int(slices or 1))

  def __str__(self) -> str:
    return self.name if self.slices == 1 else f'{self.name}*{self.slices}'

  def mesh(self) -> Mesh:
    """Returns all chips on one axis."""
    settings: dict[str, Any] = {}
    if self.slices > 1:
      settings['num_slices'] = self.slices
    if self.name.startswith('v4'):
      settings['chip_config_name'] = 'megacore'  # one device per chip
    found = topologies.get_topology_desc(
      topology_name=self.name, platform='tpu', **settings
    )
    return Mesh(np.asarray(found.devices), (pod_steps.AXIS,))


class Images:
  """Batches with the shapes of the loader's, without images."""

  classes = 1000
  train_examples = _IMAGES
  test_examples = 50_000
  skipped = 0

  def __init__(self, config: configs.TrainConfig) -> None:
    """Takes sizes and dtype from the flags of a run."""
    self.batch_size = config.batch_size
    self._side = config.image_size
    self._dtype = jnp.dtype(config.dtype)

  def sample(self) -> dict[str, np.ndarray]:
    """Returns one pixel, broadcast to the shape of a batch."""
    shape = (self.batch_size, self._side, self._side, 3)
    return {
      'inputs': np.broadcast_to(np.uint8(0), shape),
      'labels': np.broadcast_to(np.int32(0), shape[:1]),
    }

  def normalize(self, values: Any) -> jax.Array:
    """Normalizes each channel to mean 0 and standard deviation 1."""
    return imagenet.normalize(values, self._dtype)


def recipe(model: str, method: str) -> configs.TrainConfig:
  """Returns the flags of a recipe, or of the base recipe with a method."""
  base = _read(BASE_RECIPES[model])
  path = _RECIPES / f'{model}_{method}.json'
  flags = _read(path.stem) if path.exists() else base
  config = dataclasses.replace(
    flags, method=flags.base if method == 'sgd' else method
  )
  steps = (config.epochs or 1) * (_IMAGES // config.batch_size)
  return dataclasses.replace(config, steps=steps, epochs=None)


def _read(name: str) -> configs.TrainConfig:
  content = json.loads((_RECIPES / f'{name}.json').read_text(encoding='utf-8'))
  del content['about']
  flags: list[str] = []
  for key, value in content.items():
    for one in value if isinstance(value, list) else [value]:
      flags += [f'--{key}', str(one)]
  return tyro.cli(configs.TrainConfig, args=flags)


def build(model: str, row: str, mesh: Mesh) -> pod_steps.Program:
  """Returns the step of a row.

  Args:
    model: `resnet50` or `vit_s16`.
    row: `sgd` (the base optimizer alone) or the name of a method; with the
      prefix `shard_map/` a handwritten per-device step.
    mesh: the mesh of the step.
  """
  name, sync_ascent = pod_steps.parse_row(row)
  config = recipe(model, name)
  example = (config.image_size, config.image_size, 3)
  images: Any = Images(config)  # other inputs of a run are not needed
  module = models.build(
    model, Images.classes, example, dtype=jnp.dtype(config.dtype)
  )
  problem = task.Task(
    functions.from_model(module),
    images,
    objectives.build(label_smoothing=config.label_smoothing),
  )
  return pod_steps.of_task(problem, config, mesh, sync_ascent=sync_ascent)


@dataclasses.dataclass(frozen=True)
class Report:
  """The compiler's report on a function, per device.

  Attributes:
    flops: operations; of a conditional those of its costliest branch.
    peak_bytes: largest use of memory at any time.
    argument_bytes: state and batch.
    structure: collectives, conditionals, products.
  """

  flops: float
  peak_bytes: int
  argument_bytes: int
  structure: hlo.Structure


def report(compiled: Any) -> Report:
  """Returns the report on a compiled function."""
  memory = compiled.memory_analysis()
  return Report(
    flops=compiled.cost_analysis()['flops'],
    peak_bytes=memory.peak_memory_in_bytes,
    argument_bytes=memory.argument_size_in_bytes,
    structure=hlo.structure(compiled.as_text()),
  )


def compile_row(
  topology: Topology, model: str, row: str, optimization: str
) -> Report:
  """Compiles one row of the table, which takes minutes."""
  mesh = topology.mesh()
  program = build(model, row, mesh)
  if optimization == 'O0':
    jax.config.update('jax_optimization_level', 'O0')
  try:
    return report(program.lower(mesh).compile())
  finally:
    jax.config.update('jax_optimization_level', 'UNKNOWN')
    jax.clear_caches()
