"""Validation of command-line flags."""

import dataclasses
import pathlib
from typing import Any, get_args, get_type_hints

from optax_sam.train.config import flags, names
from optax_sam.train.config.configs import (
  Experiment,
  SharpnessConfig,
  TrainConfig,
)
from optax_sam.train.data import datasets

# Both axes split the batch; `fsdp` also splits parameters and states.
MESH_AXES = ('data', 'fsdp')


def validate(config: Experiment) -> None:
  """Raises a ValueError that names the first invalid value."""
  canonical(config)
  choices = get_type_hints(type(config))
  for name in ('dtype', 'execution', 'budget'):
    value, allowed = getattr(config, name, None), get_args(choices.get(name))
    if allowed and value not in allowed:
      flag = _flag(name)
      msg = f'{flag} {value!r} is unknown; choose one of {", ".join(allowed)}'
      raise ValueError(msg)
  for name, least in _AT_LEAST.items():
    _check(config, name, lambda x, y=least: x >= y, f'at least {least}')
  for name, most in _AT_MOST.items():
    _check(config, name, lambda x, y=most: x <= y, f'at most {most}')
  for name in ('label_noise', 'warmup', 'label_smoothing', 'ema_decay'):
    _check(config, name, lambda x: 0 <= x < 1, 'at least 0 and below 1')
  for name in ('learning_rate', 'sharpness_radius', 'clip_norm'):
    _check(config, name, lambda x: x > 0, 'above 0')
  _check(config, 'weight_decay', lambda x: x >= 0, 'at least 0')
  if config.rho == 0:
    msg = (
      f'--rho 0 perturbs nothing, at the cost of the method; train the base '
      f'optimizer alone, --method {config.base}, or leave --rho out'
    )
    raise ValueError(msg)
  _check(config, 'rho', lambda x: x > 0, 'above 0')
  _validate_data(config)
  if isinstance(config, TrainConfig):
    _validate_processes(config)
    axes(config.mesh or 'data=1')


def canonical(config: Experiment) -> Any:
  """Returns the configuration with every name as the code spells it.

  Raises:
    ValueError: if a name is unknown, with the closest ones.
  """
  from optax_sam.train.loop import objectives
  from optax_sam.train.optimizers import base_optimizer, build

  find = names.find
  base = find('--base', config.base, base_optimizer.optimizers())
  changed: dict[str, Any] = {'base': base}
  if ':' not in config.model:
    hint = 'or give package.module:Name or file.py:Name'
    changed['model'] = find('--model', config.model, flags.MODELS, hint=hint)
  changed['loss'] = find('--loss', config.loss, objectives.LOSSES)
  if config.metric is not None:
    changed['metric'] = find('--metric', config.metric, objectives.METRICS)
  changed['dataset'] = _dataset(config)
  for name in ('method', 'methods', 'add_methods'):
    value, flag = getattr(config, name, None), _flag(name)
    if isinstance(value, str):
      changed[name] = build.canonical_name(value, base, flag)
    elif value is not None:
      parts = [part.strip() for text in value for part in text.split(',')]
      found = [build.canonical_name(x, base, flag) for x in parts if x]
      changed[name] = tuple(dict.fromkeys(found))
  return dataclasses.replace(config, **changed)


def _dataset(config: Experiment) -> str:
  given = config.dataset
  known = list(datasets.NAMES)
  if isinstance(config, TrainConfig):
    known.append('imagenet')
  path = pathlib.Path(given)
  is_path = '/' in given or path.suffix or path.exists()
  if given not in known and is_path:
    return given
  return names.find('--dataset', given, known, hint='or give a path')


def validate_sharpness(config: SharpnessConfig) -> None:
  """Raises a ValueError that names the first invalid value."""
  if not config.runs:
    msg = (
      'name at least one run, a directory that `optax-sam train` has written'
    )
    raise ValueError(msg)
  found = run_names(config)
  if len(set(found)) < len(found):
    msg = f'the directories must have different names, not {", ".join(found)}'
    raise ValueError(msg)
  for name, least in (('examples', 1), ('eigenvalues', 1), ('probes', 2)):
    _check(config, name, lambda x, y=least: x >= y, f'at least {least}')
  _check(config, 'seed', lambda x: 0 <= x < 2**63, 'at least 0, below 2**63')
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


def _validate_data(config: Experiment) -> None:
  images = config.dataset == 'imagenet'
  if images and config.data_dir is None:
    msg = '--dataset imagenet needs --data-dir, the directory of the images'
    raise ValueError(msg)
  no_directory = config.dataset not in (*datasets.ON_DISK, 'imagenet')
  if no_directory and config.data_dir is not None:
    msg = (
      f'--data-dir is for {", ".join(datasets.ON_DISK)} and imagenet, not '
      f'{config.dataset}; leave it out'
    )
    raise ValueError(msg)
  for name in ('label_noise', 'train_examples', 'resize'):
    if images and getattr(config, name):
      msg = f'{_flag(name)} is not for imagenet; leave it out'
      raise ValueError(msg)
  if config.loss != 'cross_entropy':
    for name in ('label_noise', 'label_smoothing'):
      if getattr(config, name):
        msg = f'{_flag(name)} needs classes, not --loss {config.loss}'
        raise ValueError(msg)
  if not isinstance(config, TrainConfig):
    return
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
  'train_examples': 1,
  'resize': 1,
  'max_pixels': 1,
  'trials': 1,
  'input_threads': 1,
  'prefetch': 1,
  'epochs': 1,
  'num_processes': 1,
  'process_id': 0,
}


# So that counts fit in the integers of JAX, and in memory.
_AT_MOST = {
  **dict.fromkeys(_AT_LEAST, 2**31 - 1),
  'seed': 2**63 - 1,
  'resize': 4096,
  'image_size': 4096,
  'prefetch': 4096,
  'input_threads': 4096,
}

_MOST_FLOAT = 3.4e38  # of float32


def _flag(name: str) -> str:
  return '--' + name.replace('_', '-')


def _check(config: Any, name: str, holds: Any, allowed: str) -> None:
  value = getattr(config, name, None)  # some belong to one command only
  if value is None:
    return
  # An integer may be too large for `isfinite` and for a message.
  finite = isinstance(value, int) or abs(value) <= _MOST_FLOAT
  if not (finite and holds(value)):
    digits = len(str(value))
    shown = value if digits < 40 else f'a number of {digits} digits'
    if not finite:
      allowed += ' and finite in float32'
    msg = f'{_flag(name)} must be {allowed}, not {shown}'
    raise ValueError(msg)
