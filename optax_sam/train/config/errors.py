"""Error messages of the command, and its exit status."""

import contextlib
import re
import sys

FAILED = 1
USAGE_ERROR = 2
INTERRUPTED = 130
_LONGEST = 1500
_CONTROL = re.compile(
  r'[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]'
)


class DivergedError(RuntimeError):
  """A training run that diverged and was stopped."""


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
