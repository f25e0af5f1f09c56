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
import json
import math
import pathlib
import shutil
import zlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import jax
import msgspec
import numpy as np

from optax_sam.train.comparison import plan
from optax_sam.train.comparison.plan import Plan
from optax_sam.train.config import output_dir
from optax_sam.train.reports import results
from optax_sam.train.reports.results import Comparison, Run, Trial

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
# Other objects, such as settings that follow the accuracy, are stored as text.
_OWN = frozenset({results.__name__, plan.__name__, __name__})
T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class Record:
  """What a comparison has besides its runs.

  Attributes:
    plan: what it trains.
    problem: description of data and model; see `describe`.
    comparison: the results without runs and trials.
  """

  plan: Plan
  problem: dict[str, Any]
  comparison: Comparison


class Store:
  """The finished runs of a comparison, and what it has besides."""

  def __init__(self, directory: pathlib.Path | None = None) -> None:
    """Reads what is stored.

    Args:
      directory: of the comparison; None for a store in memory only.

    Raises:
      ValueError: if a file is damaged; names the file in one line.
    """
    self.directory = directory
    self.record: Record | None = None
    self.runs: dict[tuple[str, int], Run] = {}
    self.trials: list[Trial] = []
    if directory is None:
      return
    path = directory / 'comparison.json'
    if path.exists():
      self.record = _read(path, Record)
    for path in _files(directory / 'runs'):
      run = _read(path, Run)
      if path.stem != f'{run.method}-{run.seed}':
        msg = f'{path} is of {run.method}, seed {run.seed}; remove the file'
        raise ValueError(msg)
      self.runs[run.method, run.seed] = run
    self.trials = [_read(path, Trial) for path in _files(directory / 'trials')]

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
    if trial not in self.trials:
      self.trials.append(trial)
    self._write(f'trials/{self.trials.index(trial):05}.json', trial)

  def save(self, record: Record) -> None:
    """Stores what the comparison has besides its runs."""
    self._write('comparison.json', record)
    self.record = record

  def check(self, what: str, former: Any, now: Any) -> None:
    """Raises a ValueError if a property of what is stored differs now.

    Args:
      what: name of the property, for the message.
      former: its value in the store.
      now: its present value.
    """
    if self.directory is not None:
      check_same(self.directory, {what: former}, {what: now})

  def comparison(self) -> Comparison:
    """Returns the comparison with the runs that are finished."""
    assert self.record is not None
    planned = self.record.plan
    order = {name: number for number, name in enumerate(planned.settings)}
    keys = sorted(
      (key for key in self.runs if key[0] in order),
      key=lambda key: (key[1], order[key[0]]),
    )
    return dataclasses.replace(
      self.record.comparison,
      runs=[self.runs[key] for key in keys],
      trials=planned.trials,
    )

  def _write(self, name: str, value: Any) -> None:
    if self.directory is not None:
      path = self.directory / name
      path.parent.mkdir(exist_ok=True)
      output_dir.write(path, _encode(value))


def read(directory: pathlib.Path) -> Comparison:
  """Returns the comparison in a directory, finished or not.

  Args:
    directory: an output of `optax-sam compare`.

  Raises:
    ValueError: if there is none, or a file is damaged, in one line.
  """
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
  directory: pathlib.Path | None,
  settings: dict[str, Any],
  *,
  overwrite: bool = False,
  adding: dict[str, Any] | None = None,
  free: frozenset[str] = frozenset(),
  defaults: Mapping[str, Any] = MappingProxyType({}),
) -> Iterator[Store]:
  """Opens the store of a comparison, new or to go on with, for one process.

  A new directory is removed again if nothing is finished in it.

  Args:
    directory: of the comparison; None for a store in memory only.
    settings: all settings, ready for JSON.
    overwrite: whether to remove what an earlier comparison has stored.
    adding: what is added to an earlier comparison, whose settings differ.
    free: names of settings that may differ from those of the comparison.
    defaults: of settings that are younger than the comparison.

  Yields:
    The store, with what is finished.

  Raises:
    ValueError: if the directory belongs to something else, to another process
      or to a comparison with other settings, or if a file is damaged.
    OSError: if the directory cannot be written.
  """
  if directory is None:
    yield Store()
    return
  former_output(directory, overwrite=overwrite)
  with output_dir.created(directory) as is_new, output_dir.locked(directory):
    # Again, because it may have appeared meanwhile.
    former = None if is_new else former_output(directory, overwrite=overwrite)
    if overwrite:
      clear(directory)
    elif former is not None and not adding:
      check_same(directory, {**defaults, **former['settings']}, settings, free)
    store = Store(directory)
    output_dir.write_config(directory, 'compare', settings, adding=adding)
    try:
      yield store
    finally:
      if is_new and store.is_empty:
        clear(directory)
        (directory / output_dir.LOCK).unlink(missing_ok=True)


def former_output(
  directory: pathlib.Path, *, overwrite: bool
) -> dict[str, Any] | None:
  """Returns the config.json of the comparison to go on with, if any.

  Raises:
    ValueError: if the directory is of something else.
  """
  former = output_dir.read_config(directory)
  if former is not None and former[output_dir.MARK] == 'compare':
    if not isinstance(former.get('settings'), dict):
      msg = f'{directory / output_dir.CONFIG} has no settings'
      raise ValueError(msg)
    if not overwrite:
      return former
  output_dir.check(directory, overwrite=overwrite, known=FILES)
  return None


def clear(directory: pathlib.Path) -> None:
  """Removes the files of a comparison, config.json first."""
  for name in sorted(FILES - {output_dir.LOCK}, key='config.json'.__ne__):
    path = directory / name
    if path.is_dir() and not path.is_symlink():
      shutil.rmtree(path)
    else:
      path.unlink(missing_ok=True)


def check_same(
  directory: pathlib.Path,
  former: dict[str, Any],
  now: dict[str, Any],
  free: frozenset[str] = frozenset(),
) -> None:
  """Raises a ValueError that lists every setting that differs.

  Args:
    directory: of the comparison, for the message.
    former: its settings, or other properties.
    now: those of the present command.
    free: names that may differ.
  """
  former, now = (json.loads(_encode(one)) for one in (former, now))
  different = list(_differences(former, now, free))
  if different:
    msg = (
      f'--output {directory} has a comparison with other settings: '
      f'{"; ".join(different)}; choose another directory or add --overwrite'
    )
    raise ValueError(msg)


def _differences(
  former: dict[str, Any], now: dict[str, Any], free: frozenset[str]
) -> Iterator[str]:
  for name in sorted((former.keys() | now.keys()) - free):
    one, other = former.get(name), now.get(name)
    if isinstance(one, dict) and isinstance(other, dict):
      yield from (f'{name}: {text}' for text in _differences(one, other, free))
    elif one != other:
      yield f'{name} was {one!r} and is now {other!r}'


def describe(task: Any) -> dict[str, Any]:
  """Returns a description of data and model, to notice that they differ.

  Args:
    task: a `loop.task.Task` with data in memory.
  """
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


def _shapes(tree: Any) -> dict[str, str]:
  return {
    jax.tree_util.keystr(path): f'{leaf.dtype}{list(leaf.shape)}'
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def base_and_best(comparison: Comparison) -> list[str]:
  """Returns the base optimizer and the method with the best mean metric."""
  sign = 1 if comparison.metric.higher_is_better else -1
  means = {
    name: sign * float(np.mean(list(scores.values())))
    for name in comparison.methods
    if name != comparison.base and (scores := comparison.scores(name))
  }
  return [comparison.base, *sorted(means, key=means.__getitem__)[-1:]]


def _files(directory: pathlib.Path) -> list[pathlib.Path]:
  return sorted(directory.glob('[!.]*.json'))


def _read(path: pathlib.Path, kind: type[T]) -> T:
  """Returns what a file has; NaN and infinity are strings in it."""
  try:
    return msgspec.json.decode(path.read_bytes(), type=kind, strict=False)
  except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
    msg = f'{path} is damaged ({error}); remove it, and it is made again'
    raise ValueError(msg) from None


def _encode(value: Any) -> bytes:
  return msgspec.json.encode(_plain(value))


def _plain(value: Any) -> Any:
  """Returns a value of types that JSON has."""
  if isinstance(value, float) and not math.isfinite(value):
    return str(value)
  if value is None or isinstance(value, bool | int | float | str):
    return value
  if isinstance(value, dict):
    return {str(name): _plain(one) for name, one in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(one) for one in value]
  if isinstance(value, np.generic | np.ndarray | jax.Array):
    return _plain(np.asarray(value).tolist())
  if type(value).__module__ in _OWN and dataclasses.is_dataclass(value):
    return {
      field.name: _plain(getattr(value, field.name))
      for field in dataclasses.fields(value)
    }
  return str(value)
