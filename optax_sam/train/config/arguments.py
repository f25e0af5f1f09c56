"""The arguments of `optax-sam`, read into the configuration of a command."""

import ast
import contextlib
import dataclasses
import inspect
import io
import itertools
from collections.abc import Sequence
from typing import Annotated, Any, get_type_hints

import tyro

from optax_sam.train.config import configs, files, flags

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
    'optax-sam train --method sam --steps 1000 -o runs/sam --resume',
  ),
  'sharpness': ('optax-sam sharpness runs/ae_sam runs/sgd -o sharpness',),
  'report': ('optax-sam report runs/demo',),
  'methods': ('optax-sam methods', 'optax-sam methods AE-SAM'),
  'convert': ('optax-sam convert --source images/ --output shards/',),
}


def parse(arguments: Sequence[str]) -> Any:
  """Returns the configuration of a command.

  Raises:
    ValueError: with tyro's error message in one line.
  """
  arguments = files.expand(arguments)
  lines = io.StringIO()
  try:
    with contextlib.redirect_stderr(lines):
      parsed = tyro.extras.subcommand_cli_from_dict(
        {name: _grouped(config) for name, config in _COMMANDS.items()},
        prog='optax-sam',
        description='Trains with sharpness-aware methods and compares them. '
        '--version prints the version.',
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
      )
  except SystemExit as stop:
    if stop.code == 0:  # --help
      command = arguments[0] if arguments[0] in _COMMANDS else ''
      print('\nExamples:\n', *(f'  {x}\n' for x in EXAMPLES[command]), sep='')
      raise
    raise ValueError(_first_lines(lines.getvalue())) from None
  return _flat(parsed)


def _grouped(config: type) -> Any:
  """Returns a dataclass whose fields are the groups of flags of a command.

  tyro shows each field that is a dataclass as a group.
  """
  groups: list[Any] = [
    (name, _with_help(group))
    for name, groups in flags.GROUPS.items()
    for group in groups
    if issubclass(config, group)
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
      name = vars(before.target)['id']
      texts[name] = ' '.join(text.value.value.split())
  hints = get_type_hints(group, include_extras=True)
  made: Any = dataclasses.make_dataclass(
    group.__name__,
    [
      (
        field.name,
        Annotated[hints[field.name], tyro.conf.arg(help=texts[field.name])],
        dataclasses.field(default=field.default),
      )
      for field in dataclasses.fields(group)
    ],
    frozen=True,
    kw_only=True,
  )
  made.__doc__ = description
  return made


def _flat(parsed: Any) -> Any:
  """Returns the configuration of a command from its groups."""
  values = vars(parsed)
  if any(map(dataclasses.is_dataclass, values.values())):
    values = {k: v for group in values.values() for k, v in vars(group).items()}
  return _CONFIGS[type(parsed).__name__](**values)


def _first_lines(box: str) -> str:
  """Extracts the error message and tyro's suggestion from a box."""
  sections: list[list[str]] = [[]]
  for line in box.splitlines():
    text = line.strip('│╭╮╰╯ ')
    if not text.strip('─-'):
      sections.append([])
    elif not text.startswith('─'):  # the title of the box
      sections[-1].append(text.strip())
  if '╭' not in box:  # ASCII output has the title as a section
    sections.pop(0)
  lines, *more = [section for section in sections if section]
  message = ' '.join(lines).rstrip('.')
  for section in more:
    if section[0].startswith('Perhaps you meant'):
      message += f'; perhaps you meant {section[1]}'
    elif section[0].startswith('Available'):
      message += f'; {section[0]}'
  return f'{message}; see --help'
