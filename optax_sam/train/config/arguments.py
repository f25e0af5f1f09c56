"""The arguments of `optax-sam`, read into the configuration of a command.

`train` also takes flags from a JSON file, and from the run to resume::

  {'about': 'any text', 'dataset': 'imagenet', 'batch-size': 4096}

Flags of the command line override those of the file; `--set` adds to it.
"""

import contextlib
import dataclasses
import io
import json
import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import tyro

from optax_sam.train.config import configs, errors, flags, output_dir
from optax_sam.train.data import arrays

_COMMANDS = {
  'compare': configs.CompareConfig,
  'train': configs.TrainConfig,
  'sharpness': configs.SharpnessConfig,
  'report': configs.ReportConfig,
  'methods': configs.MethodsConfig,
  'convert': configs.ConvertConfig,
}
_CONFIGS = {config.__name__: config for config in _COMMANDS.values()}
EXAMPLES = {
  '': (
    'optax-sam compare --methods sam,asam --label-noise 0.3 --seeds 5',
    'optax-sam compare --dataset mine.npz --model net.py:Net --tune',
    'optax-sam methods ae_sam',
  ),
  'compare': (
    'optax-sam compare --methods sam,asam --label-noise 0.3 --seeds 5',
    'optax-sam compare --dataset fashion_mnist --train-examples 10000 --tune',
    'optax-sam compare --dataset mine.npz --model package.module:Net -o report',
    'optax-sam compare --base lion --lr 0.0003 --set base.b1=0.95',
  ),
  'train': (
    'optax-sam train --method ae_sam --set ae_sam.lambda_2=2 -o runs/ae_sam',
    'optax-sam train --dataset photos/ --resize 32 --model net.py:Net --seed 1',
    'optax-sam train --output runs/ae_sam --resume',
    'optax-sam train --output runs/ae_sam --resume --steps 1000',
  ),
  'sharpness': ('optax-sam sharpness runs/ae_sam runs/sgd -o sharpness',),
  'report': ('optax-sam report runs/demo',),
  'methods': ('optax-sam methods', 'optax-sam methods AE-SAM'),
  'convert': ('optax-sam convert --source images/ --output shards/',),
}


# Other names of flags of `train`.
_ALIASES = {'lr': 'learning_rate', 'optimizer': 'base', 'o': 'output'}
_ALIASES['m'] = 'method'
# Either one sets the length of training.
_LENGTHS = ('steps', 'epochs')


def parse(arguments: Sequence[str]) -> Any:
  """Returns the configuration of a command; errors are in one line."""
  for text in arguments:
    if not errors.is_printable(text) or not text or text.endswith('='):
      msg = f'argument {text[:100]!r} must have a value and be printable text'
      raise ValueError(msg)
  box = io.StringIO()
  try:
    with contextlib.redirect_stderr(box):
      parsed = tyro.extras.subcommand_cli_from_dict(
        {name: _grouped(config) for name, config in _COMMANDS.items()},
        prog='optax-sam',
        description='Trains with sharpness-aware methods and compares them. '
        '--version prints the version.',
        args=arguments,
        config=(
          tyro.conf.FlagCreatePairsOff,
          tyro.conf.OmitArgPrefixes,
          tyro.conf.DisallowNone,
        ),
      )
  except SystemExit as stop:
    if stop.code == 0:  # --help
      command = arguments[0] if arguments[0] in _COMMANDS else ''
      print('\nExamples:\n', *(f'  {x}\n' for x in EXAMPLES[command]), sep='')
      raise
    lines = [line.strip('│╭╮╰╯─ ') for line in box.getvalue().splitlines()]
    # The first line is a title.
    message = ' '.join(line for line in lines[1:] if line.strip('-'))
    raise ValueError(message) from None
  values = vars(parsed)
  if any(map(dataclasses.is_dataclass, values.values())):
    values = {k: v for group in values.values() for k, v in vars(group).items()}
  config = configs.build(_CONFIGS[type(parsed).__name__], values)
  if isinstance(config, configs.TrainConfig):
    return _complete(config, _given(arguments, set(values)))
  return config


def _grouped(config: type) -> Any:
  """Returns a dataclass of the groups of flags, which tyro shows as groups."""
  groups: list[Any] = [
    (group.__name__.lower(), Annotated[group, tyro.conf.arg(help='')])
    for group in config.__mro__
    if group.__module__ == flags.__name__
  ]
  if not groups:
    return config
  made: Any = dataclasses.make_dataclass(config.__name__, groups, frozen=True)
  made.__doc__ = config.__doc__
  return made


def _given(arguments: Sequence[str], known: set[str]) -> Counter[str]:
  """Returns how often each flag is given."""
  names = [
    text[2:].partition('=')[0].replace('-', '_')
    if text.startswith('--')
    else text[1:2]  # its value may follow at once, as in -oruns/sam
    for text in arguments
    if text[0] == '-'
  ]
  found = (_ALIASES.get(name, name) for name in names)
  return Counter(name for name in found if name in known)


def _complete(
  config: configs.TrainConfig, given: Counter[str]
) -> configs.TrainConfig:
  """Returns the flags of `train` with those of `--config` and `--resume`."""
  if given['config'] > 1:
    msg = f'--config is given {given["config"]} times; give one file'
    raise ValueError(msg)
  line = {name: getattr(config, name) for name in given}
  file = {} if config.config is None else _read(config.config)
  values: dict[str, Any] = {}
  if config.resume:
    values = vars(output_dir.read_run(config.output, '--output '))
  both = (*file.get('set', ()), *line.get('set', ()))
  values = _with(_with(values, file), line)
  if both:
    values['set'] = both
  return configs.build(configs.TrainConfig, values)


def _with(values: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
  """Returns values that are overridden by others; they have one length."""
  lengths = [name for name in _LENGTHS if more.get(name) is not None]
  if len(lengths) > 1:
    msg = '--steps and --epochs both give the length; leave one of them out'
    raise ValueError(msg)
  kept = {k: v for k, v in values.items() if not (lengths and k in _LENGTHS)}
  return kept | dict(more)


def _read(path: pathlib.Path) -> dict[str, Any]:
  """Returns the flags in a JSON file."""
  where, content = f'--config {path}', None
  with arrays.readable(where, 'give one JSON object of flags, without config'):
    if not path.exists() or path.is_file():  # others may have no end
      text = path.read_text(encoding='utf-8')
      content = json.loads(text, object_pairs_hook=_once)
  if not isinstance(content, dict) or 'config' in content:
    msg = f'{where} must be a file of one JSON object of flags, without config'
    raise ValueError(msg)
  content.pop('about', None)
  content = {key: x for key, x in content.items() if x is not None}
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
