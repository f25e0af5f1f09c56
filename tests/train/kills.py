"""Kills runs of two processes, and looks whether they resume to the bit.

`python -m tests.train.kills` does it to every method that keeps a state, at
some random moments each: while programs are compiled, between steps, in
evaluations, while checkpoints are written. A test does it to one method.
"""

import dataclasses
import json
import os
import pathlib
import random
import signal
import tempfile
import time
from typing import Any

import jax
import numpy as np
import tyro
from orbax import checkpoint as ocp

from optax_sam.train.optimizers import registry
from tests.train import pairs

# A checkpoint and an evaluation every few steps: a kill often hits one.
FLAGS = (
  *('--model', 'mlp', '--batch-size', '48', '--seed', '5'),
  *('--log-every', '1', '--checkpoint-every', '3'),
)
# Once training has begun, a kill comes within so many seconds.
LONGEST = 3.0


@dataclasses.dataclass(frozen=True)
class Kill:
  """One kill of a run.

  Attributes:
    step: of the last checkpoint that was there, 0 if there was none.
    writing: whether another one was being written.
    victims: how many of both processes were killed.
  """

  step: int
  writing: bool
  victims: int


def survive(
  directory: pathlib.Path,
  method: str,
  kills: int,
  generator: random.Random,
  steps: int = 120,
) -> list[Kill]:
  """Asserts that a run that is killed ends as one that is not.

  Args:
    directory: for the runs and their output.
    method: what to train with.
    kills: how often to kill it.
    generator: of the moments.
    steps: of the run.

  Returns:
    The kills.
  """
  length = ['--steps', str(steps), '--evaluations', str(steps // 2)]
  flags = ['--method', method, *FLAGS, *length]
  whole, killed = directory / 'whole', directory / 'killed'
  _finish(directory / 'pair-whole', [*flags, '--output', str(whole)])
  done: list[Kill] = []
  resume: list[str] = []
  for number in range(kills):
    arguments = [*flags, '--output', str(killed), *resume]
    output = directory / f'pair-{number}'
    found = _kill(output, arguments, killed, generator)
    if found is not None:
      done.append(found)
    # What isn't there cannot be resumed.
    resume = ['--resume'] if (killed / 'config.json').exists() else []
  if not (killed / 'metrics.jsonl').exists():
    arguments = [*flags, '--output', str(killed), *resume]
    _finish(directory / 'pair-last', arguments)
  assert (killed / 'metrics.jsonl').read_bytes() == (
    whole / 'metrics.jsonl'
  ).read_bytes()
  found, expected = _last(killed, steps), _last(whole, steps)
  assert _record(found) == _record(expected)
  assert _arrays(found) == _arrays(expected)
  return done


def stateful() -> list[str]:
  """Returns the methods of the trainer that keep a state."""
  return [
    name
    for name, method in registry.METHODS.items()
    if method.row.state != 'none'
  ]


def _finish(output: pathlib.Path, arguments: list[str]) -> None:
  with pairs.train(output, *arguments) as pair:
    assert pair.statuses() == [0, 0], pair.output(0) + pair.output(1)


def _kill(
  output: pathlib.Path,
  arguments: list[str],
  run: pathlib.Path,
  generator: random.Random,
) -> Kill | None:
  """Starts a run and kills it; returns None if it ended before."""
  before = _checkpoints(run)
  early = generator.random() < 0.2
  # One that is left before both have met waits for minutes for the other.
  victims = 2 if early else generator.choice([1, 2])
  delay = generator.uniform(0, LONGEST)
  with pairs.train(output, *arguments) as pair:
    if not early:
      deadline = time.monotonic() + pairs.TIMEOUT
      while _checkpoints(run) == before and _running(pair):
        assert time.monotonic() < deadline, pair.output(0) + pair.output(1)
        time.sleep(0.01)
    deadline = time.monotonic() + delay
    while _running(pair) and time.monotonic() < deadline:
      time.sleep(0.01)
    if not _running(pair):
      assert pair.statuses() == [0, 0], pair.output(0) + pair.output(1)
      return None
    chosen = generator.sample(pair.processes, victims)
    for process in chosen:
      os.kill(process.pid, signal.SIGKILL)
    found = _checkpoints(run)
    writing = any('tmp' in path.name for path in _directories(run))
    for status in pair.statuses():  # the one that is left ends by itself
      assert status != 0, pair.output(0) + pair.output(1)
  return Kill(max(found, default=0), writing, victims)


def _running(pair: pairs.Pair) -> bool:
  return all(process.poll() is None for process in pair.processes)


def _directories(run: pathlib.Path) -> list[pathlib.Path]:
  checkpoints = run / 'checkpoints'
  return list(checkpoints.iterdir()) if checkpoints.is_dir() else []


def _checkpoints(run: pathlib.Path) -> frozenset[int]:
  names = [path.name for path in _directories(run)]
  return frozenset(int(name) for name in names if name.isdecimal())


def _last(run: pathlib.Path, steps: int) -> pathlib.Path:
  assert max(_checkpoints(run)) == steps
  return run / 'checkpoints' / str(steps)


def _arrays(checkpoint: pathlib.Path) -> tuple[list[str], list[bytes]]:
  """Returns the names and the bits of all arrays of a checkpoint."""
  path = checkpoint / 'state'
  with ocp.PyTreeCheckpointer() as reader:
    found = reader.metadata(path).item_metadata.tree
    # As they are on disk, whatever devices they came from.
    as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
    state = reader.restore(
      path, restore_args=jax.tree.map(lambda _: as_numpy, found)
    )
  named = jax.tree_util.tree_leaves_with_path(state)
  return (
    [jax.tree_util.keystr(name) for name, _ in named],
    [np.asarray(leaf).tobytes() for _, leaf in named],
  )


def _record(checkpoint: pathlib.Path) -> dict[str, Any]:
  return json.loads((checkpoint / 'record' / 'metadata').read_text())


def main(kills: int = 2, seed: int = 0, only: str = '') -> None:
  """Kills a run of every method that keeps a state.

  Args:
    kills: of each of them.
    seed: of the moments, which depend on the machine as well.
    only: the methods with this in their name.
  """
  generator, total = random.Random(seed), 0
  for method in stateful():
    if only in method:
      with tempfile.TemporaryDirectory() as scratch:
        found = survive(pathlib.Path(scratch), method, kills, generator)
      total += len(found)
      print(f'{method}: equal to the bit after {found}', flush=True)
  print(f'{total} kills')


if __name__ == '__main__':
  tyro.cli(main)
