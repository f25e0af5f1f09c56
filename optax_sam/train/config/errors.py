"""Error messages of the command, and its exit status."""

import sys

FAILED = 1
USAGE_ERROR = 2
INTERRUPTED = 130


class DivergedError(RuntimeError):
  """A training run that diverged and was stopped."""


def describe(error: ValueError | OSError) -> str:
  """Returns the message of an error for the user."""
  if isinstance(error, OSError):
    where = f'{error.filename}: ' if error.filename else ''
    return f'cannot write the output: {where}{error.strerror or error}'
  return str(error)


def print_error(message: str) -> None:
  """Prints an error in one line."""
  one_line = ' '.join(message.split())
  print(f'optax-sam: error: {one_line}', file=sys.stderr, flush=True)
