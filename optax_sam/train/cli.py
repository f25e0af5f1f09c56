"""The command `optax-sam`."""

import contextlib
import io
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import tyro

from optax_sam.train import complaints, config_checks, config_files
from optax_sam.train import config as config_lib


def main(arguments: Sequence[str] | None = None) -> None:
  """Runs the command and exits: 0, 2 on bad input, 130 after Ctrl-C."""
  arguments = sys.argv[1:] if arguments is None else list(arguments)
  try:
    config = _parse(arguments)
    sys.exit(_run(config, shlex.join(['optax-sam', *arguments])))
  except KeyboardInterrupt:
    complaints.complain('interrupted, nothing was written')
    sys.exit(complaints.INTERRUPTED)
  except (ValueError, OSError) as error:
    complaints.complain(complaints.describe(error))
    sys.exit(complaints.USAGE_ERROR)


def _run(config: Any, command: str) -> int:
  """Runs one command, importing what it needs and no more."""
  from rich.console import Console

  console = Console()
  match config:
    case config_lib.CompareConfig():
      from optax_sam.train import compare

      comparison = compare.run(config, console, command)
      return complaints.INTERRUPTED if comparison.interrupted else 0
    case config_lib.TrainConfig():
      config_checks.validate(config)  # rather than wait for the other processes
      from optax_sam.train import processes, single

      with processes.joined(config):
        return 0 if single.run(config, console) else complaints.INTERRUPTED
    case config_lib.SharpnessConfig():
      from optax_sam.train import measuring

      measuring.run(config, console, command)
      return 0
    case config_lib.ConvertConfig():
      return _convert(config, console)
    case _:
      from optax_sam.train import table

      table.print_methods(console)
      return 0


def _convert(config: config_lib.ConvertConfig, console: Any) -> int:
  def say(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)

  try:
    from optax_sam.train import imagenet
  except ModuleNotFoundError as error:
    msg = f"convert needs {error.name}: pip install 'optax-sam[imagenet]'"
    raise ValueError(msg) from None
  try:
    imagenet.convert(
      config.source,
      config.output,
      shards=config.shards,
      threads=config.threads,
      say=say,
    )
  except KeyboardInterrupt:
    complaints.complain(
      'interrupted; finished shards stay, and the same command goes on with '
      'the others'
    )
    return complaints.INTERRUPTED
  say(f'Shards: {config.output}')
  return 0


def _parse(arguments: Sequence[str]) -> Any:
  """Returns the configuration of a command.

  Raises:
    ValueError: with tyro's complaint in one line.
  """
  arguments = config_files.expand(arguments)
  complaint = io.StringIO()
  try:
    with contextlib.redirect_stderr(complaint):
      return tyro.extras.subcommand_cli_from_dict(
        {
          'compare': config_lib.CompareConfig,
          'train': config_lib.TrainConfig,
          'sharpness': config_lib.SharpnessConfig,
          'methods': config_lib.MethodsConfig,
          'convert': config_lib.ConvertConfig,
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


if __name__ == '__main__':
  main()
