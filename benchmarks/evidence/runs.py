"""The runs of the evidence: one line per finished run."""

import csv
import dataclasses
import fcntl
import pathlib
import statistics
from collections.abc import Iterable
from typing import Any

from benchmarks.evidence.training import Outcome


@dataclasses.dataclass(frozen=True)
class Run:
  """The settings and the outcome of a run.

  Attributes:
    problem: name of the problem.
    variant: name of the variant.
    learning_rate: learning rate of the base optimizer.
    rho: radius; 0 for the base optimizer.
    seed: seed of data, parameters and order.
    parts: length of the run, in parts of the problem's.
    tuning: whether the run serves to choose settings.
    versions: versions of the libraries.
    outcome: the results.
  """

  problem: str
  variant: str
  learning_rate: float
  rho: float
  seed: int
  parts: int
  tuning: bool
  versions: str
  outcome: Outcome


@dataclasses.dataclass(frozen=True)
class Tried:
  """The chosen value of a setting, and the range of the values tried."""

  value: float
  low: float
  high: float

  @property
  def is_inside(self) -> bool:
    """Whether a smaller and a larger value were tried."""
    return self.low < self.value < self.high


_KINDS = {'float': float, 'int': int, 'str': str, 'bool': 'True'.__eq__}
_SETTINGS = [f for f in dataclasses.fields(Run) if f.name != 'outcome']
_MEASURES = dataclasses.fields(Outcome)
_COLUMNS = [field.name for field in (*_SETTINGS, *_MEASURES)]


class Runs:
  """The runs of one problem, in one file.

  Attributes:
    all: the runs.
    units: the runs whose deviations between seeds are the units of a mean over
      problems: these, or recorded ones if these are of some variants only.
  """

  def __init__(self, directory: pathlib.Path, problem: str):
    """Reads the existing runs.

    Args:
      directory: directory of the files of all problems; created if missing.
      problem: name of the problem.
    """
    directory.mkdir(parents=True, exist_ok=True)
    self._path = directory / f'{problem}.csv'
    self.all: list[Run] = list(self._read())
    self.units: Runs = self

  def find(self, variant: str, *, tuning: bool) -> list[Run]:
    """Returns the runs of a variant."""
    return [r for r in self.all if (r.variant, r.tuning) == (variant, tuning)]

  def add(self, run: Run) -> None:
    """Appends a run to the file, with rounded numbers."""
    rounded = {
      name: float(f'{value:.6g}') if isinstance(value, float) else value
      for name, value in dataclasses.asdict(run.outcome).items()
    }
    # Rounded in memory too, so that choices don't depend on rereading the file.
    self.all.append(dataclasses.replace(run, outcome=Outcome(**rounded)))
    line = {field.name: getattr(run, field.name) for field in _SETTINGS}
    line |= rounded
    with self._path.open('a', encoding='utf-8', newline='') as file:
      # Other processes append runs of other variants.
      fcntl.flock(file, fcntl.LOCK_EX)
      writer = csv.DictWriter(file, _COLUMNS, lineterminator='\n')
      if not file.tell():
        writer.writeheader()
      writer.writerow(line)

  def chosen(self, variant: str) -> tuple[float, float]:
    """Returns the learning rate and the radius of the runs with test seeds."""
    final = self.find(variant, tuning=False)
    return final[0].learning_rate, final[0].rho

  def tried(self, variant: str) -> dict[str, Tried]:
    """Returns what was tried of each setting of a variant."""
    trials = self.find(variant, tuning=True)
    found = {}
    for name, value in zip(
      ('learning_rate', 'rho'), self.chosen(variant), strict=True
    ):
      values = [getattr(run, name) for run in trials]
      if any(values):
        found[name] = Tried(value, min(values), max(values))
    return found

  def by_seed(self, variant: str, measure: str) -> dict[int, Any]:
    """Returns a measure of the runs with test seeds."""
    return {
      run.seed: getattr(run.outcome, measure)
      for run in self.find(variant, tuning=False)
    }

  def mean(self, variant: str, measure: str) -> float:
    """Returns the mean of a measure over the test seeds."""
    return statistics.fmean(self.by_seed(variant, measure).values())

  def has(self, variants: Iterable[str]) -> bool:
    """Whether there are runs with test seeds of all of these."""
    return all(self.find(variant, tuning=False) for variant in variants)

  def sort(self) -> None:
    """Sorts the file, so that its order does not depend on the workers."""
    ordered = sorted(
      self.all,
      key=lambda r: (
        r.variant,
        r.tuning,
        r.parts,
        r.learning_rate,
        r.rho,
        r.seed,
      ),
    )
    whole = self._path
    self._path = whole.with_suffix('.partial')
    self._path.unlink(missing_ok=True)
    self.all = []
    for run in ordered:
      self.add(run)
    self._path.replace(whole)
    self._path = whole

  def _read(self) -> Iterable[Run]:
    if not self._path.exists():
      return
    with self._path.open(encoding='utf-8', newline='') as file:
      for line in csv.DictReader(file):
        given, values = (
          {f.name: _KINDS[_name(f)](line[f.name]) for f in fields}
          for fields in (_SETTINGS, _MEASURES)
        )
        yield Run(**given, outcome=Outcome(**values))


def _name(field: dataclasses.Field) -> str:
  return field.type if isinstance(field.type, str) else field.type.__name__
