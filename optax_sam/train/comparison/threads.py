"""Independent training runs in threads."""

import concurrent.futures
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

import jax

# A step of a small model uses one core, so on a CPU several runs share them.
_MOST_WORKERS = 4


class StoppedError(Exception):
  """Ends a run whose comparison was interrupted, or had an error."""


def workers() -> int:
  """Returns the number of runs that are trained at a time."""
  if jax.default_backend() != 'cpu':
    return 1
  affinity = getattr(os, 'sched_getaffinity', None)  # not on macOS
  cores = len(affinity(0)) if affinity else os.cpu_count() or 1
  return min(cores, _MOST_WORKERS)


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
