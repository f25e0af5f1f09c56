"""Texts that a machine has: Python's sources and topics, and the King James.

Nothing is downloaded. The bytes of a text are ASCII codes; others are dropped.
"""

import pathlib
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

VOCABULARY = 128


class Parts(NamedTuple):
  """Disjoint parts of a text, arrays of codes below `VOCABULARY`."""

  training: np.ndarray
  validation: np.ndarray
  test: np.ndarray


def python_sources() -> str:
  """Returns the modules of Python's standard library, without packages."""
  folder = pathlib.Path(sysconfig.get_path('stdlib'))
  files = sorted(folder.glob('*.py'))
  return '\n'.join(path.read_text('utf-8', 'ignore') for path in files)


def topics() -> str:
  """Returns the topics of Python's `help`, English prose about the language."""
  from pydoc_data.topics import topics as found

  return '\n'.join(found[name] for name in sorted(found))


def bible() -> str:
  """Returns the King James Bible of Debian's package `bible-kjv`."""
  if shutil.which('bible') is None:
    msg = (
      'text must be one that this machine has, got bible: run `apt-get install '
      'bible-kjv`, or write --text topics.'
    )
    raise SystemExit(msg)
  done = subprocess.run(
    ['bible', '-f', 'Gen1:1-Rev22:21'],
    capture_output=True,
    text=True,
    check=True,
    stdin=subprocess.DEVNULL,
  )
  return done.stdout


TEXTS: dict[str, Callable[[], str]] = {'topics': topics, 'bible': bible}


def parts(text: str, training: int | None = None) -> Parts:
  """Splits a text into 40 pieces: 32 for training, 4 each for the other parts.

  Args:
    text: the text.
    training: largest number of bytes for training.
  """
  codes = np.frombuffer(text.encode('ascii', 'ignore'), np.uint8)
  pieces = np.array_split(codes, 40)
  kind = lambda numbers: np.concatenate(
    [piece for i, piece in enumerate(pieces) if i % 10 in numbers]
  )
  return Parts(kind(range(8))[:training], kind({8}), kind({9}))


def windows(
  codes: np.ndarray, count: int, size: int, rng: np.random.Generator
) -> np.ndarray:
  """Returns windows at random places, shape (count, size)."""
  starts = rng.integers(0, len(codes) - size, count)
  return codes[starts[:, None] + np.arange(size)].astype(np.int32)


def batches(
  codes: np.ndarray, steps: int, batch: int, size: int, seed: int
) -> Iterator[np.ndarray]:
  """Yields batches of windows for training."""
  rng = np.random.default_rng(seed)
  for _ in range(steps):
    yield windows(codes, batch, size, rng)
