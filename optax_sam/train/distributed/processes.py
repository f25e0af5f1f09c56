"""Several processes that train one model together.

All processes must execute the same collectives in the same order. Otherwise a
process in a collective waits for another one that has stopped. So an error on
one process is raised on all (`together`), and a value that only the first
process knows is broadcast (`broadcast`). If a process ends early or does not
respond, JAX ends the others: at once if a collective fails, otherwise by its
heartbeats.

Nothing that the processes exchange is encrypted or authenticated, so the
network between them must be trusted.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax._src import distributed

from optax_sam.train.config import configs, errors
from optax_sam.train.distributed import last_line

# A process that waits for another one ends within a minute.
_MEETING_SECONDS, _HEARTBEAT_SECONDS = 40, 30
# Gathered texts are padded to a multiple, because each length is compiled.
_PADDING = 1024

Result = TypeVar('Result')


class RefusedError(ValueError):
  """An error that is raised on every process because one has failed."""


class LostError(RuntimeError):
  """A collective failed, because another process has ended."""


@contextlib.contextmanager
def joined(config: configs.TrainConfig) -> Iterator[None]:
  """Context in which this process is one of several.

  Must be entered before any device is used. Does nothing for a single process.
  If the block fails on this process alone, the others may be waiting in a
  collective, so this process prints the error and exits at once. Raises a
  ValueError if the processes cannot find each other.
  """
  if not config.distributed and config.coordinator is None:
    yield
    return
  how = '--distributed'
  # Process 0 listens on its own address, not on all, as JAX would.
  bind = os.environ.get('JAX_COORDINATOR_BIND_ADDRESS', config.coordinator)
  if config.coordinator is not None:
    how = f'--coordinator {config.coordinator}'
    if config.process_id == 0:
      _check_port(bind or config.coordinator)
  last_line.begin()
  try:
    _initialize(config, how, bind)
  except BaseException:
    last_line.end()
    raise
  last_line.announce(_lost())
  refused = None
  try:
    yield
  except RefusedError as error:
    refused = error
  except BaseException as error:  # noqa: BLE001 (any error ends the process)
    _give_up(error)
  sys.stdout.flush()
  jax.distributed.shutdown()
  last_line.end()
  if refused is not None:
    raise refused


def is_first() -> bool:
  """Whether this is the process that writes and reports."""
  return jax.process_index() == 0


def gather(text: str) -> list[str]:
  """Returns the texts of all processes, in their order."""
  if jax.process_count() == 1:
    return [text]
  from jax.experimental import multihost_utils

  data = np.frombuffer(text.encode(), np.uint8)
  try:
    sizes: Any = multihost_utils.process_allgather(np.int32(data.size))
    padded = np.zeros((max(sizes) // _PADDING + 1) * _PADDING, np.uint8)
    padded[: data.size] = data
    rows: Any = multihost_utils.process_allgather(padded)
  except (ValueError, RuntimeError) as error:
    raise LostError(str(error)) from error
  pairs = zip(rows, sizes, strict=True)
  return [row[:size].tobytes().decode() for row, size in pairs]


def broadcast(value: Any) -> Any:
  """Returns the value of the first process; it must be ready for JSON."""
  return json.loads(gather(json.dumps(value) if is_first() else '')[0])


def together(action: Callable[[], Result]) -> Result:
  """Runs an action on every process; if it fails on one, all raise.

  The action must not wait for other processes. If it raises a ValueError or an
  OSError anywhere, all raise a RefusedError; a single process its own error.
  """
  result: Any = None
  message = ''
  try:
    result = action()
  except (ValueError, OSError) as error:
    if jax.process_count() == 1:
      raise
    message = errors.describe(error)
  for index, other in enumerate(gather(message)):
    if other:
      raise RefusedError(message or f'process {index}: {other}')
  return result


def on_first(action: Callable[[], Any]) -> None:
  """Runs an action on the first process; if it fails, all raise."""
  together(lambda: action() if is_first() else None)


def check_alike(what: str, values: dict[str, Any]) -> None:
  """Raises a RefusedError if values, ready for JSON, differ by process."""
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
  """Makes all processes stop after the same step, as for a preemption."""
  if jax.process_count() > 1:
    signal.raise_signal(signal.SIGTERM)


def should_stop(step: int, interrupted: bool) -> bool:
  """Whether all processes stop after this step, after which all call this."""
  if jax.process_count() == 1:
    return interrupted
  from jax.experimental import multihost_utils

  return multihost_utils.reached_preemption_sync_point(step)


def stop_at_once() -> NoReturn:
  """Raises a KeyboardInterrupt; with several processes it exits instead."""
  if jax.process_count() == 1:
    raise KeyboardInterrupt
  _give_up(KeyboardInterrupt())


def _lost() -> str:
  return (
    f'process {jax.process_index()} of {jax.process_count()} has ended early: '
    f'another process has ended or does not respond, or this one was killed; '
    f'start all of them again, with --resume if the run had begun'
  )


def _check_port(address: str) -> None:
  """Raises a ValueError if the first process cannot listen there."""
  host, _, port = address.rpartition(':')
  family = socket.AF_INET6 if ':' in host else socket.AF_INET
  try:
    socket.create_server((host.strip('[]'), int(port)), family=family).close()
  except OSError as error:
    msg = (
      f'--coordinator {address}: process 0 cannot listen there: '
      f'{os.strerror(error.errno or 0)}; give a free port of its machine'
    )
    raise ValueError(msg) from None


def _initialize(
  config: configs.TrainConfig, how: str, bind: str | None
) -> None:
  last_line.announce(
    f'{how}: the processes did not connect within {_MEETING_SECONDS} seconds; '
    f'start all of them at once, each with its own --process-id, and let them '
    f'reach process 0'
  )
  try:
    jax.distributed.initialize(
      config.coordinator,
      config.num_processes,
      config.process_id,
      initialization_timeout=_MEETING_SECONDS,
      heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
      coordinator_bind_address=bind,
    )
  except (ValueError, RuntimeError) as error:
    msg = f'{how}: the processes cannot find each other: {error}'
    if config.distributed:
      msg += '; give --coordinator, --num-processes and --process-id'
    raise ValueError(msg) from None
  # All processes must have been given the same number.
  state: Any = distributed.global_state
  key = 'optax_sam/num_processes/{}'.format
  timeout = 1000 * _MEETING_SECONDS
  state.client.key_value_set(key(state.process_id), str(state.num_processes))
  count = state.client.blocking_key_value_get(key(0), timeout)
  for index in range(int(count)):
    other = state.client.blocking_key_value_get(key(index), timeout)
    if other != count:
      jax.distributed.shutdown()
      msg = (
        f'all processes must be given the same --num-processes: it is {count} '
        f'in process 0, {other} in process {index}'
      )
      raise ValueError(msg)


def _give_up(error: BaseException) -> NoReturn:
  """Exits without waiting for the other processes, which could hang."""
  status = errors.FAILED
  if isinstance(error, KeyboardInterrupt):
    errors.print_error('interrupted; other processes stop too')
    status = errors.INTERRUPTED
  elif isinstance(error, LostError) or 'Gloo' in str(error):
    errors.print_error(_lost())
  elif isinstance(error, ValueError | OSError):
    errors.print_error(errors.describe(error))
    status = errors.USAGE_ERROR
  elif isinstance(error, jax.errors.JaxRuntimeError):
    errors.print_error(f'the devices failed: {error}')
  else:
    traceback.print_exception(error)
  sys.stdout.flush()
  last_line.end(mute=True)
  os._exit(status)
