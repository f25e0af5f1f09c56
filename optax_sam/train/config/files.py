"""The flags of a run from a JSON file, and from the run to resume.

::

  {'about': 'any text', 'dataset': 'imagenet', 'batch-size': 4096}

Flags of the command line override those of the file; `--set` adds to it.
"""

import dataclasses
import json
import pathlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

from optax_sam.train.config import configs, errors, flags, output_dir

# Either one sets the length of training.
_LENGTHS = ('steps', 'epochs')


def complete(
  config: configs.TrainConfig, given: Counter[str]
) -> configs.TrainConfig:
  """Returns the flags of `train` with those of `--config` and `--resume`.

  Args:
    config: what the command line gives, and defaults.
    given: how often it gives each flag.

  Raises:
    ValueError: if a file is invalid, or the length is given twice.
  """
  if given['config'] > 1:
    msg = f'--config is given {given["config"]} times; give one file'
    raise ValueError(msg)
  line = {name: getattr(config, name) for name in given}
  file = {} if config.config is None else _read(config.config)
  run: dict[str, Any] = {}
  if config.resume:
    run = dataclasses.asdict(of_run(config.output, '--output '))
  both = (*file.get('set', ()), *line.get('set', ()))
  values = _with(_with(run, file), line)
  if both:
    values['set'] = both
  return configs.build(configs.TrainConfig, values)


def of_run(path: pathlib.Path | None, flag: str = '') -> configs.TrainConfig:
  """Returns the configuration of a run, which `optax-sam train` has written.

  Args:
    path: directory of the run.
    flag: the flag that gave it, for the message.

  Raises:
    ValueError: if there is none, or it has an invalid setting.
  """
  if path is None:
    msg = '--resume needs --output, the directory of the run to resume'
    raise ValueError(msg)
  if not path.is_dir():
    msg = f'{flag}{path}: there is no run'
    raise ValueError(msg)
  found = output_dir.read_config(path)
  if found is None or found[output_dir.MARK] != 'train':
    msg = f'{flag}{path} is not a run of `optax-sam train`'
    raise ValueError(msg)
  places = {'data_dir': found.get('data_dir'), 'output': path}
  return configs.build(
    configs.TrainConfig,
    found['settings'] | places,
    f'{path / output_dir.CONFIG}: ',
  )


def write_run(path: pathlib.Path, config: configs.TrainConfig) -> None:
  """Writes the configuration of a run, with the place of its data."""
  data = config.data_dir and str(config.data_dir.absolute())
  settings = configs.settings(config)
  output_dir.write_config(path, 'train', settings, data_dir=data)


def _with(values: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
  """Returns values that are overridden by others; they have one length."""
  lengths = [name for name in _LENGTHS if more.get(name) is not None]
  if len(lengths) > 1:
    msg = '--steps and --epochs both give the length; leave one of them out'
    raise ValueError(msg)
  kept = {k: v for k, v in values.items() if not (lengths and k in _LENGTHS)}
  return kept | dict(more)


def _read(path: pathlib.Path) -> dict[str, Any]:
  where = f'--config {path}'
  if path.exists() and not path.is_file():
    msg = f'{where} is not a regular file'
    raise ValueError(msg)
  try:
    text = path.read_text(encoding='utf-8')
    content = json.loads(text, object_pairs_hook=_once)
  except OSError as error:
    msg = f'{where} cannot be read: {error.strerror}'
    raise ValueError(msg) from None
  except (ValueError, RecursionError) as error:
    msg = f'{where} is not JSON: {error}'
    raise ValueError(msg) from None
  if not isinstance(content, dict):
    msg = f'{where} must be one object that maps flags to values'
    raise ValueError(msg)
  content.pop('about', None)
  content = {key: x for key, x in content.items() if x is not None}
  if 'config' in content:
    msg = f'{where}: config cannot be in it; give one file'
    raise ValueError(msg)
  for key, value in content.items():
    for one in value if isinstance(value, list) else [value]:
      if isinstance(one, str) and not (one and errors.is_printable(one)):
        msg = f'{where}: {flags.name(key)} {one!r} must be printable text'
        raise ValueError(msg)
  built = configs.build(configs.TrainConfig, content, f'{where}: ')
  return {key: getattr(built, key) for key in content}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """Returns an object of JSON with underscores in its keys, none twice."""
  found: dict[str, Any] = {}
  for written, value in pairs:
    key = written.replace('-', '_')
    if key in found:
      msg = f'{written!r} is given twice'
      raise ValueError(msg)
    found[key] = value
  return found
