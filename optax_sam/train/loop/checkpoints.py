"""Checkpoints of a run with Orbax, for bit-identical resumption.

Several processes write one checkpoint together, into a directory on a shared
file system. Another number of processes or devices can read it.
"""

import contextlib
import gc
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from optax_sam.train.distributed import processes
from optax_sam.train.loop.train_step import TrainingState
from optax_sam.train.loop.trainer import Progress

_KEPT = 3


class Checkpoints:
  """The checkpoints in one directory, written in the background."""

  def __init__(self, directory: pathlib.Path, settings: dict[str, Any]) -> None:
    """Opens the directory; creates it if it is missing.

    Args:
      directory: directory of the checkpoints, with a subdirectory for each.
      settings: settings of the run, stored with every checkpoint.
    """
    self._directory = directory.absolute()
    self._settings = settings
    self._manager = ocp.CheckpointManager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=_KEPT,
        enable_async_checkpointing=True,
        cleanup_tmp_directories=True,  # left by killed processes
      ),
    )

  def __enter__(self) -> Self:
    """Returns itself."""
    return self

  def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
    """Waits until all checkpoints are on disk."""
    alone = jax.process_count() == 1
    if alone or error is None or issubclass(error, processes.RefusedError):
      self._manager.close()  # waits for the other processes

  def save(self, progress: Progress) -> None:
    """Saves the present state of a run, unless this step is already saved.

    Every process must call it, after the same step.
    """
    if progress.step in self._manager.all_steps():
      return
    record = {
      'step': progress.step,
      # Copies, because the run appends rows while these are being written.
      'log': list(progress.log),
      'evaluations': list(progress.evaluations),
      'validations': list(progress.validations),
      'best_train_accuracy': progress.best_train_accuracy,
      'inputs': progress.inputs,
      'settings': self._settings,
      'fingerprint': int(_fingerprint(progress.state)),
    }
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
    """Returns the latest intact checkpoint, None if there is none.

    Damaged checkpoints are reported. If an older one is read and the run
    resumes, they are removed, so that the run can write them again. All
    processes must call this; they get the latest checkpoint that all of them
    can read.

    Args:
      like: a state of the same run, for shapes and dtypes.
      say: called with a message for every damaged checkpoint.
      goes_on: whether the run resumes from there; if not, nothing is removed.

    Raises:
      ValueError: if there are checkpoints and none can be read.
    """
    self._manager.wait_until_finished()
    steps = processes.broadcast(sorted(self._manager.all_steps(), reverse=True))
    damaged: list[int] = []
    for step in steps:
      try:
        progress = self._read(step, like)
      except ValueError as error:
        say(f'The checkpoint of step {step} is damaged: {error}')
        damaged.append(step)
        continue
      for late in damaged if goes_on else ():
        self._manager.delete(late)
      return progress
    if damaged:
      msg = f'none of the checkpoints {sorted(damaged)} can be read'
      raise processes.RefusedError(msg)
    return None

  def _read(self, step: int, like: TrainingState) -> Progress:
    """Returns a checkpoint; if one process fails, all raise a ValueError."""
    kept = ('step', 'log', 'evaluations', 'best_train_accuracy')

    def read() -> tuple[Progress, int]:
      with _without_echo(), _alone() as reader:
        found = reader.restore(
          self._directory / str(step),
          args=ocp.args.Composite(
            state=ocp.args.StandardRestore(_stored(like)),
            record=ocp.args.JsonRestore(),
          ),
        )
        record = found.record
        progress = Progress(
          TrainingState(**found.state),
          **{name: record[name] for name in kept},
          inputs=record.get('inputs', {}),
          validations=record.get('validations', []),
        )
        return progress, record['fingerprint']

    progress, fingerprint = processes.together(read)
    if int(_fingerprint(progress.state)) != fingerprint:
      msg = 'its arrays differ from those that were saved'
      raise ValueError(msg)
    return progress


@contextlib.contextmanager
def _alone() -> Iterator[ocp.Checkpointer]:
  """Yields a checkpointer that does not wait for other processes.

  The manager waits for them after reading, and would wait forever if one of
  them could not read its part.
  """
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
  """Returns the fields that are not empty, as in older checkpoints."""
  return {
    name: value
    for name, value in state._asdict().items()
    if name not in ('average', 'memory') or value
  }


@jax.jit
def _fingerprint(state: TrainingState) -> jax.Array:
  """Returns a checksum over all bits; Orbax has none over whole arrays."""
  total = jnp.zeros((), jnp.uint32)
  for leaf in jax.tree.leaves(state):
    words = _words(leaf)
    # Odd factors detect a change of one word or a swap of two.
    factors = 2 * _positions(words.shape) + 1
    total = total * jnp.uint32(31) + jnp.sum(words * factors)
  return total


def _positions(shape: tuple[int, ...]) -> jax.Array:
  """Numbers the entries of an array without flattening it.

  To flatten an array that is split over devices would gather it.
  """
  numbers = jnp.zeros(shape, jnp.uint32)
  for axis, length in enumerate(shape):
    along = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    numbers = numbers * jnp.uint32(length) + along
  return numbers


def _words(leaf: jax.Array) -> jax.Array:
  if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    leaf = jax.random.key_data(leaf)
  if leaf.dtype == jnp.bool_:
    return leaf.astype(jnp.uint32)
  unsigned = np.dtype(f'uint{8 * min(leaf.dtype.itemsize, 4)}')
  return jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)


@contextlib.contextmanager
def _without_echo() -> Iterator[None]:
  """Prevents one failure from being printed once for each array.

  Orbax reads all arrays concurrently and stops at the first failure. Python
  would print the failures of the others when they are garbage-collected.
  """
  former = sys.unraisablehook
  sys.unraisablehook = lambda _: None
  try:
    try:
      yield
    except Exception as error:  # noqa: BLE001 (as in restore)
      # Without the traceback, which refers to the objects to collect here.
      raise ValueError(_sentence(error)) from None
    finally:
      gc.collect()
  finally:
    sys.unraisablehook = former


def _sentence(error: Exception) -> str:
  return str(error).partition('. ')[0].strip() or type(error).__name__
