"""The arguments of `optax-sam`, read into the configuration of a command."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import tyro

from optax_sam.train.config import configs, files


def parse(arguments: Sequence[str]) -> Any:
  """Returns the configuration of a command.

  Raises:
    ValueError: with tyro's error message in one line.
  """
  arguments = files.expand(arguments)
  lines = io.StringIO()
  try:
    with contextlib.redirect_stderr(lines):
      return tyro.extras.subcommand_cli_from_dict(
        {
          'compare': configs.CompareConfig,
          'train': configs.TrainConfig,
          'sharpness': configs.SharpnessConfig,
          'report': configs.ReportConfig,
          'methods': configs.MethodsConfig,
          'convert': configs.ConvertConfig,
        },
        prog='optax-sam',
        description='Trains with sharpness-aware methods and compares them. '
        '--version prints the version.',
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
      )
  except SystemExit as stop:
    if stop.code == 0:
      raise  # --help
    raise ValueError(_first_lines(lines.getvalue())) from None


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
