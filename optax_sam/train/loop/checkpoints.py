"""Checkpoints of a run with Orbax: everything needed to go on bit by bit.

Several processes write one checkpoint together, into a directory that all of
them see. They may be read by other processes, on other devices.
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
    """Opens the directory, creating it where it is missing.

    Args:
      directory: of the checkpoints, one subdirectory each.
      settings: of the run, kept with every checkpoint.
    """
    self._directory = directory.absolute()
    self._settings = settings
    self._manager = ocp.CheckpointManager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=_KEPT,
        enable_async_checkpointing=True,
        cleanup_tmp_directories=True,  # of processes that were killed
      ),
    )

  def __enter__(self) -> Self:
    """Does nothing more."""
    return self

  def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
    """Waits until everything is on disk."""
    alone = jax.process_count() == 1
    if alone or error is None or issubclass(error, processes.RefusedError):
      self._manager.close()  # which waits for the others

  def save(self, progress: Progress) -> None:
    """Saves a run as it is now, unless this step is saved already.

    Every process must call it, after the same step.
    """
    if progress.step in self._manager.all_steps():
      return
    record = {
      'step': progress.step,
      # Copies: the run adds rows while these are written in the background.
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
    """Returns the latest checkpoint that is whole, None if there is none.

    A damaged one is reported and, once an older one is read, removed if the run
    goes on, so that it can write it anew. All processes must call it, and take
    the same one: that which all of them can read.

    Args:
      like: a state of the same run, for shapes and types.
      say: told about every damaged checkpoint.
      goes_on: whether the run goes on from there; if not, nothing is removed.

    Raises:
      ValueError: if there are checkpoints and none can be read.
    """
    self._manager.wait_until_finished()
    steps = processes.share(sorted(self._manager.all_steps(), reverse=True))
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
    """Returns a checkpoint; a ValueError on all processes if one cannot."""
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
      msg = 'its arrays are not those that were saved'
      raise ValueError(msg)
    return progress


@contextlib.contextmanager
def _alone() -> Iterator[ocp.Checkpointer]:
  """Yields what reads without waiting for other processes.

  The manager waits for them after reading, and so for ever if one of them
  could not read its part.
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
  """Leaves out what there is none of, as older checkpoints do."""
  return {
    name: value
    for name, value in state._asdict().items()
    if name not in ('average', 'memory') or value
  }


@jax.jit
def _fingerprint(state: TrainingState) -> jax.Array:
  """A checksum over all bits, as the files carry none over whole arrays."""
  total = jnp.zeros((), jnp.uint32)
  for leaf in jax.tree.leaves(state):
    words = _words(leaf)
    # Odd factors, so that a change of one word or a swap of two shows.
    factors = 2 * _positions(words.shape) + 1
    total = total * jnp.uint32(31) + jnp.sum(words * factors)
  return total


def _positions(shape: tuple[int, ...]) -> jax.Array:
  """Numbers the elements of an array, without making it flat.

  One that is split over devices would have to be put together for that.
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
  """Keeps one failure from being printed once for each array.

  Orbax reads all arrays at once and gives up at the first that fails; Python
  would print the failures of the others as they are collected.
  """
  former = sys.unraisablehook
  sys.unraisablehook = lambda _: None
  try:
    try:
      yield
    except Exception as error:  # noqa: BLE001 (as in restore)
      # Without the traceback, which holds what has to be collected here.
      raise ValueError(_sentence(error)) from None
    finally:
      gc.collect()
  finally:
    sys.unraisablehook = former


def _sentence(error: Exception) -> str:
  return str(error).partition('. ')[0].strip() or type(error).__name__
