"""The store of a comparison: its finished runs, on disk or in memory.

::

  OUTPUT/config.json               settings
  OUTPUT/comparison.json           plan, timings, machine, ...: all but the runs
  OUTPUT/runs/METHOD-SEED.json     a finished run
  OUTPUT/trials/NUMBER.json        a run of the search for settings

A finished run is written at once and atomically, so an accident costs only the
runs in progress.
"""

import contextlib
import dataclasses
import math
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
import msgspec
import numpy as np

from optax_sam.train.config import configs, output_dir
from optax_sam.train.reports.results import Comparison, Run, Trial

# Settings that change neither the runs nor what is compared.
FREE = frozenset({'timing_rounds'})
FILES = frozenset(
  {
    output_dir.CONFIG,
    output_dir.LOCK,
    'comparison.json',
    'runs',
    'trials',
    'report.html',
    'results.csv',
    'metrics.jsonl',
  }
)
T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a comparison trains, after the search for settings and the budget.

  `settings` are the complete settings of each method, base optimizer first. A
  `learning_rate` replaces that of the configuration, for this method.
  """

  settings: dict[str, dict[str, Any]]
  steps: dict[str, int]
  trials: list[Trial] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Record:
  """What a comparison has besides its runs."""

  plan: Plan
  problem: dict[str, Any]  # of `describe`
  comparison: Comparison  # without runs and trials


class Store:
  """The finished runs of a comparison, and what it has besides."""

  def __init__(self, directory: pathlib.Path | None = None) -> None:
    """Reads what is stored."""
    self.directory = directory
    self.record: Record | None = None
    self.runs: dict[tuple[str, int], Run] = {}
    self.trials: list[Trial] = []
    if directory is None:
      return
    path = directory / 'comparison.json'
    if path.exists():
      self.record = _read(path, Record)
    for path in _files(directory, 'runs'):
      run = _read(path, Run)
      if path.stem != f'{run.method}-{run.seed}':
        msg = f'{path} is of {run.method}, seed {run.seed}; remove the file'
        raise ValueError(msg)
      self.runs[run.method, run.seed] = run
    self.trials = [_read(path, Trial) for path in _files(directory, 'trials')]

  @property
  def is_empty(self) -> bool:
    """Whether nothing is finished."""
    return not (self.runs or self.trials)

  def add(self, run: Run) -> None:
    """Stores a finished run."""
    self._write(f'runs/{run.method}-{run.seed}.json', run)
    self.runs[run.method, run.seed] = run

  def add_trial(self, trial: Trial) -> None:
    """Stores a run of the search for settings."""
    self._write(f'trials/{len(self.trials):05}.json', trial)
    self.trials.append(trial)

  def save(self, record: Record) -> None:
    """Stores what the comparison has besides its runs."""
    self._write('comparison.json', record)
    self.record = record

  def check(self, what: str, former: Any, now: Any) -> None:
    """Raises a ValueError if a property of what is stored differs now."""
    if self.directory is not None:
      check_same(self.directory, {what: former}, {what: now})

  def comparison(self) -> Comparison:
    """Returns the comparison with the runs that are finished."""
    assert self.record is not None
    planned = self.record.plan
    order = list(planned.settings)
    runs = [run for run in self.runs.values() if run.method in order]
    runs.sort(key=lambda run: (run.seed, order.index(run.method)))
    return dataclasses.replace(
      self.record.comparison, runs=runs, trials=planned.trials
    )

  def _write(self, name: str, value: Any) -> None:
    if self.directory is not None:
      path = self.directory / name
      path.parent.mkdir(exist_ok=True)
      output_dir.write(path, msgspec.json.encode(_plain(value)))


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
  """Opens the store of a comparison, new or to go on with, for one process.

  A new directory is removed again if nothing is finished in it.
  """
  former_output(directory, overwrite=overwrite)
  with output_dir.created(directory) as is_new, output_dir.locked(directory):
    # Again, because it may have appeared meanwhile.
    former = former_output(directory, overwrite=overwrite)
    if former is not None and not adding:
      # Those that are younger than the comparison had their defaults.
      before = configs.settings(configs.CompareConfig()) | former['settings']
      check_same(directory, before, settings, FREE)
    if overwrite:
      output_dir.clear(directory, FILES)
    store = Store(directory)
    try:
      output_dir.write_config(directory, 'compare', settings, adding=adding)
      yield store
    finally:
      store.directory = None  # for threads that outlive a second Ctrl-C
      if is_new and store.is_empty:
        output_dir.clear(directory, FILES)


def former_output(
  directory: pathlib.Path, *, overwrite: bool
) -> dict[str, Any] | None:
  """Returns the config.json of the comparison to go on with, if any."""
  former = output_dir.read_config(directory)
  is_own = former is not None and former[output_dir.MARK] == 'compare'
  if is_own and not overwrite:
    return former
  output_dir.check(directory, overwrite=overwrite, known=FILES)
  return None


def finished(directory: pathlib.Path) -> str:
  """Returns what is finished on disk, in words; '' if nothing is."""
  counts = [
    f'{count} finished {name if count > 1 else name[:-1]}'
    for name in ('runs', 'trials')
    if (count := len(_files(directory, name)))
  ]
  return ' and '.join(counts)


def check_same(
  directory: pathlib.Path,
  former: dict[str, Any],
  now: dict[str, Any],
  free: frozenset[str] = frozenset(),
) -> None:
  """Raises a ValueError that lists every setting that differs."""
  different = list(_differences(_plain(former), _plain(now), free))
  if different:
    msg = (
      f'--output {directory} has a comparison with other settings: '
      f'{"; ".join(different)}; choose another directory or add --overwrite'
    )
    raise ValueError(msg)


def describe(task: Any) -> dict[str, Any]:
  """Returns a description of data and model, to notice that they differ."""
  parts = {'train': task.inputs.train(), 'test': list(task.inputs.test())}
  shapes = jax.eval_shape(task.init, jax.random.key(0))[0]
  checksum = 0
  for leaf in jax.tree.leaves(parts):
    checksum = zlib.crc32(np.ascontiguousarray(leaf).data, checksum)
  return {
    'model': task.model.name,
    'parameters': _shapes(shapes),
    'data': _shapes(parts),
    'checksum': checksum,
  }


def _differences(
  former: dict[str, Any], now: dict[str, Any], free: frozenset[str]
) -> Iterator[str]:
  for name in sorted((former.keys() | now.keys()) - free):
    one, other = former.get(name), now.get(name)
    if isinstance(one, dict) and isinstance(other, dict):
      yield from (f'{name}: {text}' for text in _differences(one, other, free))
    elif one != other:
      yield f'{name} was {one!r} and is now {other!r}'


def _shapes(tree: Any) -> Any:
  return jax.tree.map(lambda leaf: f'{leaf.dtype}{list(leaf.shape)}', tree)


def _files(directory: pathlib.Path, part: str) -> list[pathlib.Path]:
  return sorted((directory / part).glob('[!.]*.json'))


def _read(path: pathlib.Path, kind: type[T]) -> T:
  """Returns what a file has; NaN and infinity are strings in it."""
  try:
    return msgspec.json.decode(path.read_bytes(), type=kind, strict=False)
  except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
    msg = f'{path} is damaged ({error}); remove it, and it is made again'
    raise ValueError(msg) from None


def _plain(value: Any) -> Any:
  """Returns a value of types that JSON has."""

  def finite(one: Any) -> Any:
    if isinstance(one, float) and not math.isfinite(one):
      return str(one)
    if isinstance(one, dict):
      return {name: finite(x) for name, x in one.items()}
    return [finite(x) for x in one] if isinstance(one, list) else one

  def other(one: Any) -> Any:
    return one.tolist() if hasattr(one, 'tolist') else str(one)

  return finite(msgspec.to_builtins(value, enc_hook=other))
