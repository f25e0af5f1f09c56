"""The command `optax-sam`."""

import shlex
import sys
from collections.abc import Sequence
from typing import Any

import optax_sam
from optax_sam.train.config import errors


def main(arguments: Sequence[str] | None = None) -> None:
  """Runs the command and exits.

  The status is 0, 1 if `train` diverged, 2 on bad input, 130 after Ctrl-C.
  """
  arguments = sys.argv[1:] if arguments is None else list(arguments)
  if arguments[-1:] == ['--version'] and len(arguments) <= 2:
    print(f'optax-sam {optax_sam.__version__}')
    sys.exit(0)
  try:
    from optax_sam.train.config.arguments import parse
  except ModuleNotFoundError as error:
    message = f"it needs {error.name}: pip install 'optax-sam[train]'"
    errors.print_error(message)
    sys.exit(errors.USAGE_ERROR)
  try:
    config = parse(arguments)
    sys.exit(_run(config, shlex.join(['optax-sam', *arguments])))
  except KeyboardInterrupt:
    errors.print_error('interrupted, nothing was written')
    sys.exit(errors.INTERRUPTED)
  except errors.DivergedError as error:
    errors.print_error(str(error))
    sys.exit(errors.FAILED)
  except (ValueError, OSError) as error:
    errors.print_error(errors.describe(error))
    sys.exit(errors.USAGE_ERROR)


def _run(config: Any, command: str) -> int:
  """Runs one command; imports only the modules that it needs."""
  from rich.console import Console

  from optax_sam.train.config import checks, configs

  console = Console()
  match config:
    case configs.CompareConfig():
      config = checks.canonical(config)
      from optax_sam.train.commands import compare

      comparison = compare.run(config, console, command)
      return errors.INTERRUPTED if comparison.interrupted else 0
    case configs.TrainConfig():
      config = checks.canonical(config)
      checks.validate(config)  # before waiting for the other processes
      from optax_sam.train.commands import train
      from optax_sam.train.distributed import processes

      with processes.joined(config):
        return 0 if train.run(config, console, command) else errors.INTERRUPTED
    case configs.SharpnessConfig():
      from optax_sam.train.commands import sharpness

      sharpness.run(config, console, command)
      return 0
    case configs.ReportConfig():
      from optax_sam.train.commands import report

      report.run(config, console)
      return 0
    case configs.ConvertConfig():
      from optax_sam.train.commands import convert

      return convert.run(config, console)
    case _:
      from optax_sam.train.commands import methods

      methods.run(config, console)
      return 0


if __name__ == '__main__':
  main()
