"""Several processes that train one model together.

All processes must execute the same collectives in the same order: a process in
a collective waits forever for one that has stopped. So an error on one process
is raised on all (`together`), a value that only the first process knows is
broadcast (`broadcast`), and when a process ends early the others end too
(`optax_sam.train.distributed.heartbeat`).
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
from optax_sam.train.distributed import heartbeat

_MEETING_SECONDS = 300
# Timeout after which JAX ends the other processes, if this module has not.
_HEARTBEAT_TIMEOUT_SECONDS = 30
# Time to report which process has ended, before the failure of a collective is
# reported.
_PATIENCE_SECONDS = 5
# Gathered texts are padded to a multiple, because each length is compiled.
_PADDING = 1024

Result = TypeVar('Result')


class RefusedError(ValueError):
  """An error that is raised on every process because one has failed."""


@contextlib.contextmanager
def joined(config: configs.TrainConfig) -> Iterator[None]:
  """Context in which this process is one of several.

  Must be entered before any device is used. Does nothing for a single process.
  If the block fails on this process alone, the others may be waiting in a
  collective, so this process prints the error and exits at once.

  Args:
    config: the validated flags.

  Raises:
    RefusedError: raised by the block.
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
  except BaseException as error:  # noqa: BLE001 (any error ends the process)
    _give_up(error)
  _leave(watch)


def is_first() -> bool:
  """Whether this is the process that writes and reports."""
  return jax.process_index() == 0


def gather(text: str) -> list[str]:
  """Returns the texts of all processes, in their order."""
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


def broadcast(value: Any) -> Any:
  """Returns the value of the first process; it must be ready for JSON."""
  return json.loads(gather(json.dumps(value) if is_first() else '')[0])


def together(action: Callable[[], Result]) -> Result:
  """Runs an action on every process; if it fails on one, all raise.

  Args:
    action: a function that does not wait for other processes.

  Raises:
    RefusedError: if the action raises a ValueError or an OSError anywhere.
    ValueError: that of the action, if there is only one process.
    OSError: that of the action, if there is only one process.
  """
  result: Any = None
  message = ''
  try:
    result = action()
  except (ValueError, OSError) as error:
    if jax.process_count() == 1:
      raise
    message = errors.describe(error) or type(error).__name__
  for index, other in enumerate(gather(message)):
    if other:
      raise RefusedError(message or f'process {index}: {other}')
  return result


def on_first(action: Callable[[], Any]) -> None:
  """Runs an action on the first process; if it fails, all raise."""
  together(lambda: action() if is_first() else None)


def check_alike(what: str, values: dict[str, Any]) -> None:
  """Raises a RefusedError that names a value that differs between processes.

  Args:
    what: plural noun for the values, for the message.
    values: the values of this process, ready for JSON.
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
  """Makes all processes stop after the same step as this one.

  The step is found as for a preemption of this machine.
  """
  if jax.process_count() > 1:
    signal.raise_signal(signal.SIGTERM)


def should_stop(step: int, interrupted: bool) -> bool:
  """Whether all processes stop after this step.

  After `interrupt`, or a SIGTERM, of any process they stop one or two steps
  later.

  Args:
    step: the step that was taken; every process must call this after every
      step.
    interrupted: whether this process was interrupted.
  """
  if jax.process_count() == 1:
    return interrupted
  from jax.experimental import multihost_utils

  return multihost_utils.reached_preemption_sync_point(step)


def stop_at_once() -> NoReturn:
  """Raises a KeyboardInterrupt; with several processes it exits instead."""
  if jax.process_count() == 1:
    raise KeyboardInterrupt
  _give_up(KeyboardInterrupt())


def _initialize(config: configs.TrainConfig) -> None:
  if config.coordinator is None:
    how = '--distributed'
  else:
    how = f'--coordinator {config.coordinator}'

  def end() -> None:
    errors.print_error(
      f'{how}: the other processes did not connect within {_MEETING_SECONDS} '
      f'seconds; start all of them and let them reach the first one'
    )
    os._exit(errors.FAILED)

  # Without this JAX would abort.
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


def _watch(config: configs.TrainConfig) -> heartbeat.Heartbeat:
  index, count = jax.process_index(), jax.process_count()
  server = heartbeat.Server(count) if index == 0 else None
  address = broadcast(None if server is None else server.address)
  if config.coordinator is not None:
    address['host'] = config.coordinator.rpartition(':')[0].strip('[]')

  def end(other: int) -> NoReturn:
    errors.print_error(
      f'process {other} of {count} has ended and process {index} cannot '
      f'continue without it; see its output, then start all with --resume'
    )
    os._exit(errors.FAILED)

  return (
    heartbeat.Client(address, index, end)
    if server is None
    else server.watch(end)
  )


def _leave(watch: heartbeat.Heartbeat) -> None:
  sys.stdout.flush()
  watch.close()
  jax.distributed.shutdown()


def _give_up(error: BaseException) -> NoReturn:
  """Exits without waiting for the other processes, which could hang."""
  status = errors.FAILED
  if isinstance(error, KeyboardInterrupt):
    errors.print_error('interrupted; other processes stop too')
    status = errors.INTERRUPTED
  elif isinstance(error, ValueError | OSError):
    errors.print_error(errors.describe(error))
    status = errors.USAGE_ERROR
  elif isinstance(error, jax.errors.JaxRuntimeError):
    time.sleep(_PATIENCE_SECONDS)
    errors.print_error(f'the devices failed: {error}')
  else:
    traceback.print_exception(error)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)
