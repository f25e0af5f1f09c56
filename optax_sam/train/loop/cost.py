"""What a run has cost so far: gradients and seconds."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class StepCost:
  """Operations of a step, in units of a step of the base optimizer.

  Attributes:
    ascended: of a step with a perturbed gradient, or of any step of a method
      that does not skip.
    skipped: of a step that skips it.
  """

  ascended: float
  skipped: float

  def until(self, steps: int, second_gradients: float) -> float:
    """Returns the cost of a number of steps.

    Args:
      steps: number of steps.
      second_gradients: how many of them took a perturbed gradient.
    """
    skipped = steps - second_gradients
    return self.ascended * second_gradients + self.skipped * skipped

  def mean(self, fraction: float) -> float:
    """Returns the mean cost if a fraction of the steps takes the gradient."""
    return self.until(1, fraction)


class Stopwatch:
  """Measures the seconds of training, without pauses."""

  def __init__(self) -> None:
    """Starts."""
    self._began = time.perf_counter()
    self._paused: float | None = None

  @property
  def seconds(self) -> float:
    """Seconds from the start, up to the pause during one."""
    now = time.perf_counter() if self._paused is None else self._paused
    return now - self._began

  @contextlib.contextmanager
  def paused(self, pending: Any = None) -> Iterator[None]:
    """Excludes a block of code.

    Args:
      pending: arrays; the block begins when they are computed.
    """
    jax.block_until_ready(pending)
    self._paused = time.perf_counter()
    yield
    self._began += time.perf_counter() - self._paused
    self._paused = None
