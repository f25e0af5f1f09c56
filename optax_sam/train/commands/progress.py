"""Progress output: bars on a terminal, plain lines elsewhere."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Self

from rich import progress as rich_progress
from rich.console import Console

from optax_sam.train.config import errors
from optax_sam.train.reports import formats


def say(console: Console, text: str) -> None:
  """Prints lines as they are, with escaped control characters."""
  text = formats.printable(text)
  console.print(text, markup=False, highlight=False, soft_wrap=True)


class Reporter:
  """Shows phases and their progress.

  On a terminal each phase has a bar. A file or a pipe gets plain lines: one
  when a phase begins, and one for each finished item.
  """

  def __init__(self, console: Console) -> None:
    self.console = console
    self._bars = rich_progress.Progress(
      rich_progress.TextColumn('{task.description}', markup=False),
      rich_progress.BarColumn(),
      rich_progress.MofNCompleteColumn(),
      rich_progress.TimeRemainingColumn(),
      rich_progress.TextColumn('{task.fields[detail]}', 'dim', markup=False),
      console=console,
      disable=not console.is_terminal,
    )

  def __enter__(self) -> Self:
    self._bars.start()
    return self

  def __exit__(self, *error: object) -> None:
    self._bars.stop()

  def line(self, text: str) -> None:
    """Prints one line, above the bars if there are any."""
    say(self._bars.console, text)

  @contextlib.contextmanager
  def phase(self, text: str, total: int) -> Iterator['Phase']:
    """Starts a phase of `total` units of work."""
    if not self.console.is_terminal:
      self.line(text)
    text = errors.printable(text)
    yield Phase(self._bars, self._bars.add_task(text, total=total, detail=''))


@dataclasses.dataclass(frozen=True)
class Phase:
  """One bar of a display."""

  bars: rich_progress.Progress
  task: rich_progress.TaskID

  def advance(self, amount: int = 1) -> None:
    """Counts units of work as done."""
    self.bars.advance(self.task, amount)

  def detail(self, text: str) -> None:
    """Shows the name of the current item."""
    self.bars.update(self.task, detail=errors.printable(text))
