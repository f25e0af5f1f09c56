"""The runs of the evidence: one line per finished run."""

import csv
import dataclasses
import fcntl
import pathlib
import statistics
from collections.abc import Iterable

from benchmarks.evidence.training import Outcome
from benchmarks.evidence.variants import BASE, VARIANTS


@dataclasses.dataclass(frozen=True)
class Run:
  """The settings and the outcome of a run.

  Attributes:
    problem: name of the problem.
    variant: name of the variant.
    learning_rate: learning rate of the base optimizer.
    rho: radius; 0 for the base optimizer.
    seed: seed of data, parameters and order.
    tuning: whether the run serves to choose settings.
    versions: versions of the libraries.
    outcome: the results.
  """

  problem: str
  variant: str
  learning_rate: float
  rho: float
  seed: int
  tuning: bool
  versions: str
  outcome: Outcome


_KINDS = {'float': float, 'int': int, 'str': str, 'bool': 'True'.__eq__}
_SETTINGS = [f for f in dataclasses.fields(Run) if f.name != 'outcome']
_MEASURES = dataclasses.fields(Outcome)
_COLUMNS = [field.name for field in (*_SETTINGS, *_MEASURES)]


class Runs:
  """The runs of one problem, in one file."""

  def __init__(self, directory: pathlib.Path, problem: str):
    """Reads the existing runs.

    Args:
      directory: directory of the files of all problems; created if missing.
      problem: name of the problem.
    """
    directory.mkdir(parents=True, exist_ok=True)
    self._path = directory / f'{problem}.csv'
    self.all: list[Run] = list(self._read())

  def find(self, variant: str, *, tuning: bool) -> list[Run]:
    """Returns the runs of a variant.

    Only runs at the present candidate learning rates, and of the final ones
    only those at the chosen settings, because the candidates may have changed
    since earlier runs.
    """
    found = [r for r in self.all if (r.variant, r.tuning) == (variant, tuning)]
    if VARIANTS[variant].is_method:
      rates = self.learning_rates(variant)
      found = [run for run in found if run.learning_rate in rates]
    if not tuning and found:
      chosen = self.chosen(variant)
      found = [r for r in found if (r.learning_rate, r.rho) == chosen]
    return found

  def add(self, run: Run) -> None:
    """Appends a run to the file, with rounded numbers."""
    rounded = {
      name: float(f'{value:.6g}')
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
    """Returns the learning rate and the radius with the best validation.

    The criterion is the mean over the tuning seeds; ties give the smallest
    values.
    """
    found: dict[tuple[float, float], list[float]] = {}
    for run in self.find(variant, tuning=True):
      accuracy = run.outcome.validation_accuracy
      found.setdefault((run.learning_rate, run.rho), []).append(accuracy)
    return max(sorted(found), key=lambda s: statistics.fmean(found[s]))

  def learning_rates(self, variant: str) -> list[float]:
    """Returns the candidate learning rates of a variant."""
    base, _ = self.chosen(BASE)
    return [float(f'{base * rate:.3g}') for rate in VARIANTS[variant].rates]

  def by_seed(self, variant: str, measure: str) -> dict[int, float]:
    """Returns a measure of the final runs of a variant."""
    return {
      run.seed: getattr(run.outcome, measure)
      for run in self.find(variant, tuning=False)
    }

  def has(self, variants: Iterable[str]) -> bool:
    """Whether there are final runs of all of these."""
    return all(self.find(variant, tuning=False) for variant in variants)

  def sort(self) -> None:
    """Sorts the file, so that its order does not depend on the workers."""
    ordered = sorted(
      self.all,
      key=lambda r: (r.variant, r.tuning, r.learning_rate, r.rho, r.seed),
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
        given = {f.name: _KINDS[_name(f)](line[f.name]) for f in _SETTINGS}
        values = {f.name: float(line[f.name]) for f in _MEASURES}
        yield Run(**given, outcome=Outcome(**values))


def _name(field: dataclasses.Field) -> str:
  return field.type if isinstance(field.type, str) else field.type.__name__
