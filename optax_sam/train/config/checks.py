"""Validation of command-line flags."""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

from optax_sam.train.config import configs, errors, flags, names
from optax_sam.train.config.configs import Experiment, TrainConfig
from optax_sam.train.data import datasets

# Both axes split the batch; `fsdp` also splits parameters and states.
MESH_AXES = ('data', 'fsdp')
_TOGETHER = ('coordinator', 'num_processes', 'process_id')


def validate(config: Experiment) -> None:
  """Raises a ValueError that names the first invalid value."""
  canonical(config)
  configs.build(type(config), vars(config))
  for message in _wrong(config):
    raise ValueError(message)
  if isinstance(config, TrainConfig):
    storable('--output', config.output or pathlib.Path('runs'))
    axes(config.mesh or 'data=1')


def storable(flag: str, path: pathlib.Path) -> None:
  """Raises a ValueError if Orbax would store checkpoints at another path."""
  where = str(path.absolute())
  found = next((x for x in '\\*?[' if x in where), '')
  if found or not errors.is_printable(where):
    what = repr(found) if found else 'a character that cannot be printed'
    msg = (
      f'{flag} {where}: checkpoints cannot be stored below {what}; rename it'
    )
    raise ValueError(msg)


def canonical(config: Experiment) -> Any:
  """Returns the configuration with every name as the code spells it."""
  from optax_sam.train.loop import objectives
  from optax_sam.train.optimizers import base_optimizer, build

  find = names.find
  base = find('--base', config.base, base_optimizer.optimizers())
  changed: dict[str, Any] = {'base': base}
  known = list(datasets.NAMES)
  if isinstance(config, TrainConfig):
    known.append('imagenet')
  given, path = config.dataset, pathlib.Path(config.dataset)
  if given in known or not ('/' in given or path.suffix or path.exists()):
    hint = 'or give a path'
    changed['dataset'] = find('--dataset', given, known, hint=hint)
  if ':' not in config.model:
    hint = 'or give package.module:Name or file.py:Name'
    changed['model'] = find('--model', config.model, flags.MODELS, hint=hint)
  changed['loss'] = find('--loss', config.loss, objectives.LOSSES)
  if config.metric is not None:
    changed['metric'] = find('--metric', config.metric, objectives.METRICS)
  for name in ('method', 'methods', 'add_methods'):
    value, flag = getattr(config, name, None), flags.name(name)
    if isinstance(value, str):
      changed[name] = build.canonical_name(value, base, flag)
    elif value is not None:
      parts = [part.strip() for text in value for part in text.split(',')]
      found = [build.canonical_name(x, base, flag) for x in parts if x]
      changed[name] = tuple(dict.fromkeys(found))
  return dataclasses.replace(config, **changed)


def axes(mesh: str) -> dict[str, int]:
  """Returns the axes that `--mesh` names, with their sizes."""
  found: dict[str, int] = {}
  for part in mesh.split(','):
    name, _, size = part.partition('=')
    valid = size.isdecimal() and len(size) < 10 and int(size)
    if name not in MESH_AXES or not valid:
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


def _wrong(config: Experiment) -> Iterator[str]:
  """Yields what is wrong with flags that do not fit each other."""
  if config.rho == 0:
    yield (
      f'--rho 0 perturbs nothing, at the cost of the method; train the base '
      f'optimizer alone, --method {config.base}, or leave --rho out'
    )
  images = config.dataset == 'imagenet'
  if images and config.data_dir is None:
    yield '--dataset imagenet needs --data-dir, the directory of the images'
  on_disk = (*datasets.ON_DISK, 'imagenet')
  if config.dataset not in on_disk and config.data_dir is not None:
    yield (
      f'--data-dir is for {", ".join(datasets.ON_DISK)} and imagenet, not '
      f'{config.dataset}; leave it out'
    )
  for name in ('label_noise', 'train_examples', 'resize'):
    if images and getattr(config, name):
      yield f'{flags.name(name)} is not for imagenet; leave it out'
  for name in ('label_noise', 'label_smoothing'):
    if config.loss != 'cross_entropy' and getattr(config, name):
      yield f'{flags.name(name)} needs classes, not --loss {config.loss}'
  if isinstance(config, TrainConfig):
    yield from _wrong_processes(config)


def _wrong_processes(config: TrainConfig) -> Iterator[str]:
  missing = [x for x in _TOGETHER if getattr(config, x) is None]
  if len(missing) == len(_TOGETHER):
    return
  together = ', '.join(map(flags.name, _TOGETHER))
  if config.distributed:
    yield (
      f'--distributed finds the other processes automatically; omit it, or '
      f'omit {together}'
    )
  if missing:
    yield (
      f'{together} are given together; here '
      f'{" and ".join(map(flags.name, missing))} is missing'
    )
  host, _, port = str(config.coordinator).rpartition(':')
  valid = port.isdecimal() and len(port) < 6 and 0 < int(port) < 2**16
  if not (host and valid):
    yield f'--coordinator {config.coordinator!r} must read HOST:PORT'
  count, index = config.num_processes, config.process_id
  if count is not None and index is not None and index >= count:
    yield f'--process-id must be below {count}, not {index}'
