"""Several processes that train one model, and what they agree on.

All of them run the same program on the same flags. They must not part ways: a
process that waits in a collective for one that has stopped waits for ever. So
what may be refused is refused by all (`together`), what only one can know is
told to the others (`share`), and a process that ends before its time takes the
others with it (`optax_sam.train.distributed.vigil`).
"""

import contextlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np

from optax_sam.train.config import configs, errors
from optax_sam.train.distributed import vigil

_MEETING_SECONDS = 300
# After so long without a sign of life JAX ends the other processes, where the
# vigil hasn't.
_HEARTBEAT_TIMEOUT_SECONDS = 30
# For the vigil to say which process has ended, before a collective that fails
# for it is reported.
_PATIENCE_SECONDS = 5
# What is gathered is padded to a multiple, as each length is a program.
_PADDING = 1024

Result = TypeVar('Result')


class RefusedError(ValueError):
  """What every process refuses, because one of them does."""


@contextlib.contextmanager
def joined(config: configs.TrainConfig) -> Iterator[None]:
  """Makes this process one of several for as long as the block runs.

  Must be entered before anything else uses a device. Does nothing if the flags
  ask for a single process. If the block fails on this process alone, the
  others may be waiting for it anywhere: it says why and exits at once.

  Args:
    config: with the flags, validated.

  Raises:
    RefusedError: from the block.
    ValueError: if the processes cannot find each other.
  """
  if not config.distributed and config.coordinator is None:
    yield
    return
  _initialize(config)
  watch = _watch(config)
  try:
    yield
  except RefusedError:
    _leave(watch)
    raise
  except BaseException as error:  # noqa: BLE001 (whatever it is, it's the end)
    _give_up(error)
  _leave(watch)


def is_first() -> bool:
  """Returns whether this is the process that writes and reports."""
  return jax.process_index() == 0


def gather(text: str) -> list[str]:
  """Returns what every process gave, in their order."""
  if jax.process_count() == 1:
    return [text]
  from jax.experimental import multihost_utils

  data = np.frombuffer(text.encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.asarray(data.size, np.int32))
  if not any(sizes):
    return [''] * len(sizes)
  padded = np.zeros(-(-max(sizes) // _PADDING) * _PADDING, np.uint8)
  padded[: data.size] = data
  rows = multihost_utils.process_allgather(padded)
  return [
    row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)
  ]


def share(value: Any) -> Any:
  """Returns what the first process gave; it must be ready for JSON."""
  return json.loads(gather(json.dumps(value) if is_first() else '')[0])


def together(action: Callable[[], Result]) -> Result:
  """Runs what any process may refuse; if one does, all do.

  Args:
    action: what to run; it must not wait for other processes.

  Raises:
    RefusedError: if the action raises a ValueError or an OSError anywhere.
    ValueError: that of the action, if there is one process only.
    OSError: likewise.
  """
  result: Any = None
  complaint = ''
  try:
    result = action()
  except (ValueError, OSError) as error:
    if jax.process_count() == 1:
      raise
    complaint = errors.describe(error) or type(error).__name__
  for index, other in enumerate(gather(complaint)):
    if other:
      raise RefusedError(complaint or f'process {index}: {other}')
  return result


def on_first(action: Callable[[], Any]) -> None:
  """Runs on the first process what all refuse if it does."""
  together(lambda: action() if is_first() else None)


def check_alike(what: str, values: dict[str, Any]) -> None:
  """Raises a RefusedError that names what is not the same on all processes.

  Args:
    what: plural noun for the values.
    values: of this process, ready for JSON.
  """
  given = [json.loads(text) for text in gather(json.dumps(values))]
  for index, other in enumerate(given):
    for name, value in other.items():
      if value != given[0].get(name):
        msg = (
          f'all processes must be given the same {what}: {name} is '
          f'{given[0].get(name)!r} in process 0, {value!r} in process {index}'
        )
        raise RefusedError(msg)


def interrupt() -> None:
  """Asks all other processes to stop after the same step as this one.

  They find that step as if this machine were about to be taken away.
  """
  if jax.process_count() > 1:
    signal.raise_signal(signal.SIGTERM)


def should_stop(step: int, interrupted: bool) -> bool:
  """Returns whether this is the step after which all processes stop.

  Several do for `interrupt`, or a SIGTERM, of any of them, a step or two later.

  Args:
    step: that was taken; every process must ask after every step.
    interrupted: whether this process was.
  """
  if jax.process_count() == 1:
    return interrupted
  from jax.experimental import multihost_utils

  return multihost_utils.reached_preemption_sync_point(step)


def stop_at_once() -> NoReturn:
  """Raises a KeyboardInterrupt, or with several processes just exits."""
  if jax.process_count() == 1:
    raise KeyboardInterrupt
  _give_up(KeyboardInterrupt())


def _initialize(config: configs.TrainConfig) -> None:
  if config.coordinator is None:
    how = '--distributed'
  else:
    how = f'--coordinator {config.coordinator}'

  def end() -> None:
    errors.complain(
      f'{how}: the other processes did not come within {_MEETING_SECONDS} '
      f'seconds; start all of them, and let them reach the first one'
    )
    os._exit(errors.FAILED)

  # JAX would abort.
  limit = threading.Timer(_MEETING_SECONDS, end)
  limit.daemon = True
  limit.start()
  try:
    jax.distributed.initialize(
      config.coordinator,
      config.num_processes,
      config.process_id,
      initialization_timeout=2 * _MEETING_SECONDS,
      heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT_SECONDS,
    )
  except (ValueError, RuntimeError) as error:
    msg = f'{how}: the processes cannot find each other: {error}'
    if config.distributed:
      msg += '; give --coordinator, --num-processes and --process-id'
    raise ValueError(msg) from None
  finally:
    limit.cancel()


def _watch(config: configs.TrainConfig) -> vigil.Vigil:
  index, count = jax.process_index(), jax.process_count()
  server = vigil.Server(count) if index == 0 else None
  address = share(None if server is None else server.address)
  if config.coordinator is not None:
    address['host'] = config.coordinator.rpartition(':')[0].strip('[]')

  def end(other: int) -> NoReturn:
    errors.complain(
      f'process {other} of {count} has ended and process {index} cannot go on '
      f'without it; see what it printed, then start all of them with --resume'
    )
    os._exit(errors.FAILED)

  return (
    vigil.Client(address, index, end) if server is None else server.watch(end)
  )


def _leave(watch: vigil.Vigil) -> None:
  sys.stdout.flush()
  watch.close()
  jax.distributed.shutdown()


def _give_up(error: BaseException) -> NoReturn:
  """Exits without waiting for the others, as what waits would hang."""
  status = errors.FAILED
  if isinstance(error, KeyboardInterrupt):
    errors.complain('interrupted; other processes stop too')
    status = errors.INTERRUPTED
  elif isinstance(error, ValueError | OSError):
    errors.complain(errors.describe(error))
    status = errors.USAGE_ERROR
  elif isinstance(error, jax.errors.JaxRuntimeError):
    time.sleep(_PATIENCE_SECONDS)
    errors.complain(f'the devices failed: {error}')
  else:
    traceback.print_exception(error)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)
