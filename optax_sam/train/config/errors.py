"""Error messages of the command, and its exit status."""

import re
import sys

FAILED = 1
USAGE_ERROR = 2
INTERRUPTED = 130
_CONTROL = re.compile(r'[\x00-\x1f\x7f-\x9f\u2028-\u202e\ud800-\udfff]')


class DivergedError(RuntimeError):
  """A training run that diverged and was stopped."""


def printable(text: str) -> str:
  """Returns text with escaped control characters, for a terminal."""
  return _CONTROL.sub(lambda x: x[0].encode('unicode_escape').decode(), text)


def describe(error: ValueError | OSError) -> str:
  """Returns the message of an error for the user."""
  if isinstance(error, OSError):
    where = f'{error.filename}: ' if error.filename else ''
    return f'cannot write the output: {where}{error.strerror or error}'
  return str(error)


def print_error(message: str) -> None:
  """Prints an error in one line."""
  one_line = printable(' '.join(message.split()))
  print(f'optax-sam: error: {one_line}', file=sys.stderr, flush=True)
