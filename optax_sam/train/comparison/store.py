"""The store of a comparison: its finished runs, on disk or in memory.

::

  OUTPUT/config.json               settings
  OUTPUT/comparison.json           all but the runs: steps, timings, machine
  OUTPUT/runs/METHOD-SEED.json     a finished run
  OUTPUT/trials/NUMBER.json        a run of the search for settings

A finished run is written at once and atomically, so an accident costs only the
runs in progress.
"""

import contextlib
import dataclasses
import itertools
import json
import pathlib
import threading
import time
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import msgspec
import numpy as np

from optax_sam.train.config import configs, output_dir
from optax_sam.train.data.arrays import readable
from optax_sam.train.reports.results import Comparison, Run, Trial

FILES = frozenset(
  {output_dir.CONFIG, output_dir.LOCK, 'comparison.json', 'runs', 'trials'}
  | {'report.html', 'results.csv', 'metrics.jsonl'}
)
Settings = dict[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Record:
  """The data of a comparison other than its runs and trials."""

  settings: Settings  # complete ones of each method, base optimizer first
  steps: dict[str, int]
  problem: dict[str, Any]  # of `describe`
  comparison: Comparison
  # Checksums of the steps of methods with functions of the caller.
  functions: dict[str, str] = dataclasses.field(default_factory=dict)


class Store:
  """The finished runs of a comparison, its trials and its other data."""

  def __init__(self, directory: pathlib.Path | None = None) -> None:
    """Reads what is stored."""
    self.directory = directory
    self.record: Record | None = None
    self.runs: dict[tuple[str, int], Run] = {}
    self.trials: list[Trial] = []
    self._stored_at, self._lock = time.perf_counter(), threading.Lock()
    if directory is None:
      return
    path = directory / 'comparison.json'
    if path.exists():
      self.record = _read(path, Record)
    for path in files(directory, 'runs'):
      run = _read(path, Run)
      if path.stem != f'{run.method}-{run.seed}':
        msg = f'{path} is of {run.method}, seed {run.seed}; remove the file'
        raise ValueError(msg)
      self.runs[run.method, run.seed] = run
    self.trials = [_read(path, Trial) for path in files(directory, 'trials')]

  def add(self, run: Run) -> None:
    """Stores a finished run."""
    self._write(f'runs/{run.method}-{run.seed}.json', run)
    self.runs[run.method, run.seed] = run

  def add_trial(self, trial: Trial) -> None:
    """Stores a run of the search for settings."""
    with self._lock:  # searches run in threads
      names = (f'trials/{k:05}.json' for k in itertools.count(len(self.trials)))
      where = self.directory
      # A damaged file may have been removed, so that its number is missing.
      is_free = lambda name: where is None or not (where / name).exists()
      self._write(next(filter(is_free, names)), trial)
      self.trials.append(trial)

  def save(self, record: Record) -> None:
    """Stores the data of the comparison other than its runs."""
    self._write('comparison.json', record)
    self.record = record

  def update(self, **changes: Any) -> None:
    """Stores changes of the comparison, and the time so far."""
    assert self.record is not None
    former, now = self.record.comparison, time.perf_counter()
    changes['seconds'] = former.seconds + now - self._stored_at
    self._stored_at = now
    changed = dataclasses.replace(former, **changes)
    self.save(dataclasses.replace(self.record, comparison=changed))

  def comparison(self) -> Comparison:
    """Returns the comparison with the runs that are finished."""
    assert self.record is not None
    order = list(self.record.settings)
    runs = [run for run in self.runs.values() if run.method in order]
    runs.sort(key=lambda run: (run.seed, order.index(run.method)))
    trials = [trial for trial in self.trials if trial.method in order]
    trials.sort(key=lambda trial: order.index(trial.method))
    return dataclasses.replace(self.record.comparison, runs=runs, trials=trials)

  def _write(self, name: str, value: Any) -> None:
    if self.directory is not None:
      path = self.directory / name
      path.parent.mkdir(exist_ok=True)
      output_dir.write(path, json.dumps(_plain(value)).encode())


def read(directory: pathlib.Path) -> Comparison:
  """Returns the comparison in a directory, finished or not."""
  directory = pathlib.Path(directory)
  found = output_dir.read_config(directory)
  if found is None or found.get(output_dir.MARK) != 'compare':
    msg = f'{directory} is not an output of `optax-sam compare`'
    raise ValueError(msg)
  store = Store(directory)
  if store.record is None:
    msg = f'{directory} has no finished runs; repeat the command to train them'
    raise ValueError(msg)
  return store.comparison()


@contextlib.contextmanager
def opened(
  directory: pathlib.Path,
  settings: dict[str, Any],
  *,
  overwrite: bool = False,
  adding: dict[str, Any] | None = None,
) -> Iterator[Store]:
  """Opens the store of a comparison, new or to continue, for one process.

  A new directory is removed again if nothing is finished in it.
  """
  with output_dir.created(directory) as is_new, output_dir.locked(directory):
    former = former_output(directory, overwrite=overwrite)
    if former is not None and not adding:
      # Those that are younger than the comparison had their defaults.
      before = configs.settings(configs.CompareConfig()) | former['settings']
      check_same(directory, before, settings)
    if overwrite:
      output_dir.clear(directory, FILES)
    store = Store(directory)
    try:
      output_dir.write_config(directory, 'compare', settings, adding=adding)
      yield store
    finally:
      store.directory = None  # for threads that outlive a second Ctrl-C
      if is_new and not (store.runs or store.trials):
        output_dir.clear(directory, FILES)


def former_output(
  directory: pathlib.Path, *, overwrite: bool
) -> dict[str, Any] | None:
  """Returns the config.json of the comparison to continue, if any."""
  former = output_dir.read_config(directory)
  is_own = former is not None and former[output_dir.MARK] == 'compare'
  if is_own and not overwrite:
    return former
  output_dir.check(directory, overwrite=overwrite, known=FILES)
  return None


def check_same(
  directory: pathlib.Path | None,
  former: dict[str, Any],
  now: dict[str, Any],
  what: str = '',
) -> None:
  """Raises a ValueError that lists every setting that differs."""
  different = configs.differences(_plain(former), _plain(now))
  if different:
    listed = '; '.join(f'{what}{text}' for text in different)
    msg = (
      f'--output {directory} has a comparison with other settings: '
      f'{listed}; choose another directory or add --overwrite'
    )
    raise ValueError(msg)


def describe(task: Any) -> dict[str, Any]:
  """Returns a description of data and model, to detect that they differ."""
  data = (task.inputs.train(), list(task.inputs.test()))
  params = jax.eval_shape(task.init, jax.random.key(0))[0]
  checksum = zlib.crc32(str(jax.tree.leaves(params)).encode())
  for leaf in jax.tree.leaves(data):
    checksum = zlib.crc32(np.ascontiguousarray(leaf).data, checksum)
  return {'model': task.model.name, 'checksum': checksum}


def files(directory: pathlib.Path, part: str) -> list[pathlib.Path]:
  """Returns the files of finished `runs` or `trials`."""
  return sorted((directory / part).glob('[!.]*.json'))


def _read(path: pathlib.Path, kind: type) -> Any:
  with readable(path, 'it is damaged; remove it, and it is made again'):
    return msgspec.convert(json.loads(path.read_bytes()), kind)


def _plain(value: Any) -> Any:
  """Returns a value of types that JSON has, NaN and infinity included."""
  other = lambda one: one.tolist() if hasattr(one, 'tolist') else str(one)
  return msgspec.to_builtins(value, enc_hook=other)
