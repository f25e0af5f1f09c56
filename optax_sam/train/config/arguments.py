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
    ValueError: with tyro's complaint in one line.
  """
  arguments = files.expand(arguments)
  complaint = io.StringIO()
  try:
    with contextlib.redirect_stderr(complaint):
      return tyro.extras.subcommand_cli_from_dict(
        {
          'compare': configs.CompareConfig,
          'train': configs.TrainConfig,
          'sharpness': configs.SharpnessConfig,
          'methods': configs.MethodsConfig,
          'convert': configs.ConvertConfig,
        },
        prog='optax-sam',
        description='Trains with sharpness-aware methods and compares them.',
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
      )
  except SystemExit as stop:
    if stop.code == 0:
      raise  # --help
    raise ValueError(_first_lines(complaint.getvalue())) from None


def _first_lines(box: str) -> str:
  """Takes the complaint, and tyro's guess at what was meant, out of a box."""
  sections: list[list[str]] = [[]]
  for line in box.splitlines():
    text = line.strip('│╭╮╰╯ ')
    if not text.strip('─-'):
      sections.append([])
    elif not text.startswith('─'):  # the title of the box
      sections[-1].append(text.strip())
  if (
    '╭' not in box
  ):  # as where the output is ASCII: there the title is a section
    sections.pop(0)
  complaint, *more = [section for section in sections if section]
  message = ' '.join(complaint).rstrip('.')
  for section in more:
    if section[0].startswith('Perhaps you meant'):
      message += f'; perhaps you meant {section[1]}'
    elif section[0].startswith('Available'):
      message += f'; {section[0]}'
  return f'{message}; see --help'
