"""Progress output: bars on a terminal, plain lines elsewhere."""

import contextlib
from collections.abc import Iterator
from typing import Self

from rich import progress as rich_progress
from rich.console import Console


class Reporter:
  """Shows phases and their progress.

  On a terminal each phase has a bar. A file or a pipe gets plain lines: one
  when a phase begins, and one for each finished item.
  """

  def __init__(self, console: Console) -> None:
    """Creates a reporter that shows nothing yet.

    Args:
      console: console to print on.
    """
    self.console = console
    self._bars = rich_progress.Progress(
      rich_progress.TextColumn('{task.description}'),
      rich_progress.BarColumn(),
      rich_progress.MofNCompleteColumn(),
      rich_progress.TimeRemainingColumn(),
      rich_progress.TextColumn('[dim]{task.fields[detail]}'),
      console=console,
      disable=not console.is_terminal,
    )

  def __enter__(self) -> Self:
    """Starts the bars."""
    self._bars.start()
    return self

  def __exit__(self, *error: object) -> None:
    """Leaves the bars as they are."""
    self._bars.stop()

  def line(self, text: str) -> None:
    """Prints one line, above the bars if there are any."""
    self._bars.console.print(
      text, markup=False, highlight=False, soft_wrap=True
    )

  @contextlib.contextmanager
  def phase(self, text: str, total: int) -> Iterator['Phase']:
    """Starts a phase of `total` units of work."""
    if not self.console.is_terminal:
      self.line(text)
    yield Phase(self._bars, self._bars.add_task(text, total=total, detail=''))


class Phase:
  """One bar."""

  def __init__(
    self, bars: rich_progress.Progress, task: rich_progress.TaskID
  ) -> None:
    """Wraps a progress bar of rich.

    Args:
      bars: the progress display with all bars.
      task: identifier of this bar.
    """
    self._bars = bars
    self._task = task

  def advance(self, amount: int = 1) -> None:
    """Counts units of work as done."""
    self._bars.advance(self._task, amount)

  def detail(self, text: str) -> None:
    """Shows the name of the current item."""
    self._bars.update(self._task, detail=text)
