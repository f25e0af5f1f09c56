"""Error messages of the command, and its exit status."""

import contextlib
import math
import re
import signal
import sys
import time

FAILED = 1
USAGE_ERROR = 2
INTERRUPTED = 130
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_REPEAT_SECONDS = 0.5
_last_signal = -math.inf
_LONGEST = 1500
_CONTROL = re.compile(
  r'[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]'
)


class DivergedError(RuntimeError):
  """A training run that diverged and was stopped."""


def heard_signals() -> set[signal.Signals]:
  """Returns the ending signals that the process does not ignore."""
  ignored = signal.SIG_IGN  # SIGHUP under nohup, for example
  return {x for x in ENDING_SIGNALS if signal.getsignal(x) is not ignored}


def is_repeated_signal() -> bool:
  """Whether a signal follows another one within half a second.

  Shells and schedulers send a signal to a process and to its group, so it
  arrives twice. The second one must not disturb the handling of the first.
  """
  global _last_signal
  now = time.monotonic()
  if now - _last_signal < _REPEAT_SECONDS:
    return True
  _last_signal = now
  return False


def printable(text: str) -> str:
  """Returns text with escaped control characters, for a terminal."""
  return _CONTROL.sub(lambda x: x[0].encode('unicode_escape').decode(), text)


def is_printable(text: str) -> bool:
  """Whether a text has no control characters and is valid UTF-8."""
  return not _CONTROL.search(text)


def describe(error: BaseException) -> str:
  """Returns the message of an error for the user."""
  if isinstance(error, OSError):
    where = f'{error.filename}: ' if error.filename else ''
    return f'cannot write the output: {where}{error.strerror or error}'
  return str(error) or type(error).__name__


def first_line(error: Exception) -> str:
  """Returns the first line of an error message."""
  return next(iter(str(error).strip().splitlines()), type(error).__name__)


def print_error(message: str) -> None:
  """Prints an error in one line."""
  line = printable(' '.join(message.split()))
  if len(line) > _LONGEST:
    line = f'{line[:_LONGEST]}...'
  print_warning(f'optax-sam: error: {line}')


def print_warning(line: str) -> None:
  """Prints a line for which the standard output is not the place."""
  with contextlib.suppress(OSError):  # it may be closed
    # One write, so that no other thread writes in between.
    sys.stderr.write(f'{printable(line)}\n')
    sys.stderr.flush()
