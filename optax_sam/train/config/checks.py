"""Validation of command-line flags."""

import math
from typing import Any, get_args, get_type_hints

from optax_sam.train.config.configs import (
  Experiment,
  SharpnessConfig,
  TrainConfig,
)

# Both axes split the batch; `fsdp` also splits parameters and states.
MESH_AXES = ('data', 'fsdp')


def validate(config: Experiment) -> None:
  """Raises a ValueError that names the first invalid value."""
  choices = get_type_hints(type(config))
  for name in ('dataset', 'model', 'dtype', 'base', 'execution'):
    value, allowed = getattr(config, name), get_args(choices[name])
    if value not in allowed:
      flag = _flag(name)
      msg = f'{flag} {value!r} is unknown; choose one of {", ".join(allowed)}'
      raise ValueError(msg)
  for name, least in _AT_LEAST.items():
    _check(config, name, lambda x, y=least: x >= y, f'at least {least}')
  _check(config, 'label_noise', lambda x: 0 <= x <= 1, 'from 0 to 1')
  _check(config, 'warmup', lambda x: 0 <= x < 1, 'at least 0 and below 1')
  for name in ('label_smoothing', 'ema_decay'):
    _check(config, name, lambda x: 0 <= x < 1, 'at least 0 and below 1')
  for name in ('learning_rate', 'sharpness_radius', 'clip_norm'):
    _check(config, name, lambda x: x > 0, 'above 0')
  for name in ('weight_decay', 'rho'):
    _check(config, name, lambda x: x >= 0, 'at least 0')
  if isinstance(config, TrainConfig):
    _validate_data(config)
    _validate_processes(config)
    axes(config.mesh or 'data=1')


def validate_sharpness(config: SharpnessConfig) -> None:
  """Raises a ValueError that names the first invalid value."""
  if not config.runs:
    msg = (
      'name at least one run, a directory that `optax-sam train` has written'
    )
    raise ValueError(msg)
  names = run_names(config)
  if len(set(names)) < len(names):
    msg = f'the directories must have different names, not {", ".join(names)}'
    raise ValueError(msg)
  for name, least in (('examples', 1), ('eigenvalues', 1), ('probes', 2)):
    _check(config, name, lambda x, y=least: x >= y, f'at least {least}')
  _check(config, 'seed', lambda x: x >= 0, 'at least 0')
  for name in ('rho', 'adaptive_rho'):
    _check(config, name, lambda x: x > 0, 'above 0')


def run_names(config: SharpnessConfig) -> list[str]:
  """Returns the names of the runs to measure: those of their directories."""
  return [path.resolve().name for path in config.runs]  # `.` has none


def axes(mesh: str) -> dict[str, int]:
  """Returns the axes that `--mesh` names, with their sizes.

  Raises:
    ValueError: if it cannot be parsed, in one line.
  """
  found: dict[str, int] = {}
  for part in mesh.split(','):
    name, _, size = part.partition('=')
    if name not in MESH_AXES or not size.isdecimal() or not int(size):
      msg = (
        f'--mesh {mesh!r}: {part!r} must be {" or ".join(MESH_AXES)}=N with a '
        f'number of devices, as in data=8 or data=4,fsdp=2'
      )
      raise ValueError(msg)
    if name in found:
      msg = f'--mesh {mesh} names {name} twice; give each axis once'
      raise ValueError(msg)
    found[name] = int(size)
  return found


def _validate_data(config: TrainConfig) -> None:
  images = config.dataset == 'imagenet'
  if images and config.data_dir is None:
    msg = '--dataset imagenet needs --data-dir, the directory of the images'
    raise ValueError(msg)
  if not images and config.data_dir is not None:
    msg = f'--data-dir is for --dataset imagenet, not {config.dataset}'
    raise ValueError(msg)
  if images and config.label_noise:
    msg = '--label-noise is for digits and mnist1d; leave it out for imagenet'
    raise ValueError(msg)
  # `--steps` with its default value is not detected here, but in files.py.
  if config.epochs is not None and config.steps != Experiment.steps:
    msg = '--steps and --epochs both give the length; leave one of them out'
    raise ValueError(msg)


def _validate_processes(config: TrainConfig) -> None:
  together = ('coordinator', 'num_processes', 'process_id')
  missing = [name for name in together if getattr(config, name) is None]
  if len(missing) == len(together):
    return
  if config.distributed:
    msg = (
      '--distributed finds the other processes automatically; omit it, or omit '
      + ', '.join(map(_flag, together))
    )
    raise ValueError(msg)
  if missing:
    msg = (
      f'{", ".join(map(_flag, together))} are given together; here '
      f'{" and ".join(map(_flag, missing))} is missing'
    )
    raise ValueError(msg)
  host, _, port = str(config.coordinator).rpartition(':')
  if not (host and port.isdecimal() and 0 < int(port) < 2**16):
    msg = f'--coordinator {config.coordinator!r} must read HOST:PORT'
    raise ValueError(msg)
  count: Any = config.num_processes
  _check(config, 'process_id', lambda x: x < count, f'below {count}')


_AT_LEAST = {
  'steps': 1,
  'batch_size': 1,
  'evaluations': 1,
  'log_every': 1,
  'sharpness_examples': 1,
  'seeds': 1,
  'add_seeds': 0,
  'seed': 0,
  'timing_rounds': 0,
  'checkpoint_every': 1,
  'image_size': 1,
  'input_threads': 1,
  'prefetch': 1,
  'epochs': 1,
  'num_processes': 1,
  'process_id': 0,
}


def _flag(name: str) -> str:
  return '--' + name.replace('_', '-')


def _check(config: Any, name: str, holds: Any, allowed: str) -> None:
  value = getattr(config, name, None)  # some belong to one command only
  if value is None:
    return
  if not (math.isfinite(value) and holds(value)):
    msg = f'{_flag(name)} must be {allowed}, not {value}'
    raise ValueError(msg)
