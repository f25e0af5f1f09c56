"""The arguments of `optax-sam`, read into the configuration of a command."""

import ast
import contextlib
import dataclasses
import inspect
import io
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, get_type_hints

import tyro

from optax_sam.train.config import configs, errors, files, flags

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


def parse(arguments: Sequence[str]) -> Any:
  """Returns the configuration of a command.

  Raises:
    ValueError: with tyro's error message in one line.
  """
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
    return files.complete(config, _given(arguments, set(values)))
  return config


def _given(arguments: Sequence[str], known: set[str]) -> Counter[str]:
  """Returns how often each flag is given."""
  written = [text.partition('=')[0] for text in arguments if text[0] == '-']
  names = [text.lstrip('-').replace('-', '_') for text in written]
  found = (_ALIASES.get(name, name) for name in names)
  return Counter(name for name in found if name in known)


def _grouped(config: type) -> Any:
  """Returns a dataclass whose fields are the groups of flags of a command.

  tyro shows each field that is a dataclass as a group.
  """
  groups: list[Any] = [
    (group.__name__.lower(), _with_help(group))
    for group in config.__mro__
    if group.__module__ == flags.__name__
  ]
  if not groups:
    return _with_help(config, config.__doc__ or '')
  made: Any = dataclasses.make_dataclass(config.__name__, groups, frozen=True)
  made.__doc__ = config.__doc__
  return made


def _with_help(group: Any, description: str = '') -> Any:
  """Returns a copy with the texts below the fields as help texts.

  tyro can read them itself, but keeps their line breaks.
  """
  texts = {}
  (definition,) = ast.parse(inspect.getsource(group)).body
  for before, text in itertools.pairwise(vars(definition)['body']):
    if isinstance(before, ast.AnnAssign):
      texts[vars(before.target)['id']] = ' '.join(text.value.value.split())
  hints = get_type_hints(group, include_extras=True)
  fields = []
  for field in dataclasses.fields(group):
    with_help = Annotated[
      hints[field.name], tyro.conf.arg(help=texts[field.name])
    ]
    default = dataclasses.field(default=field.default)
    fields.append((field.name, with_help, default))
  made: Any = dataclasses.make_dataclass(
    group.__name__, fields, frozen=True, kw_only=True
  )
  made.__doc__ = description
  return made
