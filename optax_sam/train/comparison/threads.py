"""Independent training runs in threads."""

import concurrent.futures
import threading
from collections.abc import Callable, Iterable
from typing import Any

import jax

from optax_sam.train.reports import machine

# A step of a small model uses one core, so on a CPU several runs share them.
_MOST_WORKERS = 4


class StoppedError(Exception):
  """Ends a run after an interrupt, or an error in another run."""


def check(stop: threading.Event) -> None:
  """Raises a StoppedError if the other runs have ended."""
  if stop.is_set():
    raise StoppedError


def workers() -> int:
  """Returns the number of runs that are trained at a time."""
  is_cpu = jax.default_backend() == 'cpu'
  return min(machine.cores(), _MOST_WORKERS) if is_cpu else 1


def together(
  jobs: Iterable[Callable[[], Any]],
  *,
  stop: threading.Event | None = None,
  done: Callable[[], None] = lambda: None,
) -> None:
  """Runs jobs in threads; on an error or Ctrl-C the others end early."""
  with concurrent.futures.ThreadPoolExecutor(workers()) as pool:
    try:
      started = [pool.submit(job) for job in jobs]
      for job in concurrent.futures.as_completed(started):
        job.result()
        done()
    except BaseException:
      if stop is not None:
        stop.set()
      pool.shutdown(cancel_futures=True, wait=False)
      raise
