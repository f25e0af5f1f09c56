"""The command `optax-sam`."""

import io
import logging
import os
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from typing import Any

import jax

import optax_sam
from optax_sam.train.config import errors


def main(arguments: Sequence[str] | None = None) -> None:
  """Runs the command and exits.

  The status is 0, 1 if `train` diverged or the devices failed, 2 on bad input,
  130 after Ctrl-C or SIGTERM.
  """
  if arguments is not None:
    sys.exit(_status(list(arguments)))
  _prepare_process()
  try:
    status = _status(sys.argv[1:])
  except SystemExit as stop:
    status = stop.code
  except KeyboardInterrupt:  # another one, while the first was reported
    status = errors.INTERRUPTED
  for number in errors.ENDING_SIGNALS:
    signal.signal(number, signal.SIG_IGN)  # everything is printed
  if status == errors.INTERRUPTED:
    # Threads of JAX may still run, and Python could crash on its way out.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
  sys.exit(status)


def _prepare_process() -> None:
  """Prepares for signals and closed outputs, and silences libraries."""
  for number, name in ((1, 'stdout'), (2, 'stderr')):
    if getattr(sys, name) is None:  # it was closed before the start
      number = os.open(os.devnull, os.O_WRONLY)
    stream = io.BufferedWriter(_Unfailing(number, 'w', closefd=False))
    text = io.TextIOWrapper(
      stream, errors='backslashreplace', line_buffering=True
    )
    setattr(sys, name, text)
  for number in errors.heard_signals():
    signal.signal(number, _interrupt)
  # Libraries report what ends here as one line.
  logging.disable(logging.CRITICAL)
  warnings.simplefilter('ignore')
  sys.unraisablehook = threading.excepthook = lambda _: None


def _interrupt(*_: object) -> None:
  if not errors.is_repeated_signal():
    raise KeyboardInterrupt


class _Unfailing(io.FileIO):
  """A stream that may be closed, or full, without ending a run."""

  def write(self, data: Any) -> int:
    """Writes what can be written."""
    try:
      return super().write(data)
    except OSError:
      return len(data)


def _status(arguments: list[str]) -> int:
  if arguments[-1:] == ['--version'] and len(arguments) <= 2:
    print(f'optax-sam {optax_sam.__version__}')
    return 0
  try:
    from optax_sam.train.config.arguments import parse

    return _run(parse(arguments), shlex.join(['optax-sam', *arguments]))
  except ModuleNotFoundError as error:
    message = f"it needs {error.name}: pip install 'optax-sam[train]'"
    status = errors.USAGE_ERROR
  except KeyboardInterrupt:
    message, status = 'interrupted, nothing was written', errors.INTERRUPTED
  except errors.DivergedError as error:
    message, status = str(error), errors.FAILED
  except jax.errors.JaxRuntimeError as error:
    message = f'the devices failed: {str(error).splitlines()[0]}'
    status = errors.FAILED
  except (ValueError, OSError, ArithmeticError, MemoryError) as error:
    message, status = errors.describe(error), errors.USAGE_ERROR
  errors.print_error(message)
  return status


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
    case configs.ReportConfig():
      from optax_sam.train.commands import compare

      compare.report(config, console)
    case configs.ConvertConfig():
      return _convert(config, console)
    case _:
      from optax_sam.train.commands import methods

      methods.run(config, console)
  return 0


def _convert(config: Any, console: Any) -> int:
  """Converts a folder of images to shards."""
  from optax_sam.train.commands import progress

  try:
    from optax_sam.train.data import imagenet
  except ModuleNotFoundError as error:
    msg = f"convert needs {error.name}: pip install 'optax-sam[imagenet]'"
    raise ValueError(msg) from None
  # Names of images may contain line breaks.
  say = lambda text: progress.say(console, errors.printable(text))
  try:
    imagenet.convert(
      config.source,
      config.output,
      shards=config.shards,
      threads=config.threads,
      max_pixels=config.max_pixels,
      say=say,
    )
  except KeyboardInterrupt:
    errors.print_error(
      'interrupted; finished shards are complete; run the same command '
      'again to continue'
    )
    return errors.INTERRUPTED
  say(f'Shards: {config.output}')
  return 0


if __name__ == '__main__':
  main()
