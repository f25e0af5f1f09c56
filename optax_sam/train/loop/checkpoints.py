"""Checkpoints of a run with Orbax, for bit-identical resumption.

Several processes write one checkpoint together, into a directory on a shared
file system. Another number of processes or devices can read it.
"""

import contextlib
import functools
import hashlib
import json
import pathlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from optax_sam.train.config import configs
from optax_sam.train.distributed import processes
from optax_sam.train.loop.train_step import TrainingState
from optax_sam.train.loop.training_progress import Progress

_KEPT = 3
_LONGEST_WAIT = 10.0  # seconds, for threads of Orbax that wait for each other
_TENSORSTORE_SECONDS = 0.3  # its threads cannot be joined
# Settings that may differ when a run is resumed.
_FREE = ('steps', 'checkpoint_every')
# Fields of `Progress` in the record beside the arrays.
_RECORDED = ('step', 'log', 'evaluations', 'validations')


class Checkpoints:
  """The checkpoints in one directory, written in the background.

  Each is stored with the settings of the run. Orbax logs an error many times
  before it raises it; the command line disables all logs.
  """

  def __init__(self, directory: pathlib.Path, settings: dict[str, Any]) -> None:
    self._directory = directory.absolute()
    self._settings = json.loads(json.dumps(settings))
    self._manager = ocp.CheckpointManager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=_KEPT,
        enable_async_checkpointing=True,
        cleanup_tmp_directories=True,  # left by killed processes
      ),
    )

  def __enter__(self) -> Self:
    return self

  def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
    # Closing waits for checkpoints that are being written, by all processes.
    if error is None:
      with self._writing():
        self._manager.close()
    elif jax.process_count() == 1 or issubclass(error, processes.RefusedError):
      with contextlib.suppress(Exception):
        self._manager.close()

  def save(self, progress: Progress) -> None:
    """Saves a run, unless this step is saved; every process must call it.

    Raises:
      ValueError: if this checkpoint or the one before cannot be written.
    """
    if progress.step in self._manager.all_steps():
      return
    record = {name: getattr(progress, name) for name in _RECORDED}
    record['settings'] = self._settings
    # A copy, because the run appends rows while these are being written.
    record = json.loads(json.dumps(record))
    record['checksum'] = _checksum(progress.state, record)
    with self._writing():
      self._manager.save(
        progress.step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(_stored(progress.state)),
          record=ocp.args.JsonSave(record),
        ),
      )

  def restore(
    self,
    like: TrainingState,
    say: Callable[[str], None],
    *,
    goes_on: bool = True,
  ) -> Progress | None:
    """Returns the latest checkpoint that all processes can read, if any.

    `like` is a state of the same run, for shapes and dtypes. Damaged
    checkpoints are reported by `say`. If an older one is read and the run
    `goes_on`, they are removed, so that the run can write them again. Raises a
    ValueError if none of them can be read, or if one is of other settings.
    """
    self._manager.wait_until_finished()
    steps = processes.broadcast(sorted(self._manager.all_steps(), reverse=True))
    damaged: list[int] = []
    for step in steps:
      try:
        state, record = self._read(step, like)
      except ValueError as error:
        say(f'The checkpoint of step {step} is damaged: {error}')
        damaged.append(step)
        continue
      check = functools.partial(self._check, step, record['settings'])
      processes.together(check)
      for late in damaged if goes_on else ():
        self._manager.delete(late)
      return Progress(state, **{name: record[name] for name in _RECORDED})
    if damaged:
      msg = f'none of the checkpoints {sorted(damaged)} can be read'
      raise processes.RefusedError(msg)
    return None

  def _check(self, step: int, former: dict[str, Any]) -> None:
    names = self._settings.keys() & former.keys() - set(_FREE)
    if different := configs.differences(former, self._settings, names):
      msg = (
        f'the checkpoint of step {step} in {self._directory} has other '
        f'settings: {"; ".join(different)}; remove it, or use its settings'
      )
      raise ValueError(msg)

  def _read(
    self, step: int, like: TrainingState
  ) -> tuple[TrainingState, dict[str, Any]]:
    """Returns a checkpoint; if one process fails, all raise a ValueError."""

    def read() -> tuple[TrainingState, dict[str, Any], str]:
      try:
        with _alone() as reader:
          found = reader.restore(
            self._directory / str(step),
            args=ocp.args.Composite(
              state=ocp.args.StandardRestore(_stored(like)),
              record=ocp.args.JsonRestore(),
            ),
          )
        record = dict(found.record)
        return TrainingState(**found.state), record, record.pop('checksum')
      except Exception as error:  # noqa: BLE001 (damage raises any of them)
        reason = str(error).partition('. ')[0].strip()
        raise ValueError(reason or type(error).__name__) from None

    state, record, checksum = processes.together(read)
    if _checksum(state, record) != checksum or record['step'] != step:
      msg = 'it differs from what was saved'
      raise ValueError(msg)
    return state, record

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    try:
      yield
    except Exception as error:  # noqa: BLE001 (Orbax raises many)
      is_lost = isinstance(error, jax.errors.JaxRuntimeError)
      if is_lost and jax.process_count() > 1:
        raise processes.LostError(str(error)) from None
      _wait_for_other_writes()
      reason = str(error).rpartition(': ')[2].partition(' [')[0]
      msg = f'{self._directory}: a checkpoint cannot be written: {reason}'
      raise ValueError(msg) from None


def _wait_for_other_writes() -> None:
  """Waits until the other writes of a failed checkpoint have ended.

  Otherwise they could create files in a directory that the caller removes.
  """
  deadline = time.monotonic() + _LONGEST_WAIT
  for thread in threading.enumerate():
    if type(thread).__module__.startswith('orbax.'):
      with contextlib.suppress(Exception):  # its error, or this time-out
        thread.join(timeout=max(0.0, deadline - time.monotonic()))
  time.sleep(_TENSORSTORE_SECONDS)


@contextlib.contextmanager
def _alone() -> Iterator[ocp.Checkpointer]:
  """Yields a checkpointer that waits for no process, unlike the manager."""
  index = jax.process_index()
  options = ocp.options.MultiprocessingOptions(
    primary_host=index,
    active_processes={index},
    barrier_sync_key_prefix=f'process_{index}',
  )
  handler = ocp.CompositeCheckpointHandler(
    composite_options=ocp.CompositeOptions(multiprocessing_options=options)
  )
  with ocp.Checkpointer(handler, multiprocessing_options=options) as reader:
    yield reader


def _stored(state: TrainingState) -> dict[str, Any]:
  """Returns the fields of a state that are not empty."""
  return {
    name: value
    for name, value in state._asdict().items()
    if name != 'memory' or value
  }


def _checksum(state: TrainingState, record: dict[str, Any]) -> str:
  """Returns a checksum over arrays and record; Orbax has none over both."""
  content = [record, int(_fingerprint(state))]
  return hashlib.sha256(
    json.dumps(content, sort_keys=True).encode()
  ).hexdigest()


@jax.jit
def _fingerprint(state: TrainingState) -> jax.Array:
  """Returns a checksum over all bits, without gathering any array."""
  total = jnp.zeros((), jnp.uint32)
  for leaf in jax.tree.leaves(state):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    if leaf.dtype == jnp.bool_:
      leaf = leaf.astype(jnp.uint8)
    unsigned = np.dtype(f'uint{8 * min(leaf.dtype.itemsize, 4)}')
    words = jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)
    positions = jnp.arange(words.size, dtype=jnp.uint32).reshape(words.shape)
    # Odd factors detect a change of one word or a swap of two.
    products = words * (2 * positions + 1)
    total = total * jnp.uint32(31) + jnp.sum(products, dtype=jnp.uint32)
  return total
