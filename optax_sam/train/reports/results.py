"""The results of a comparison."""

import dataclasses
import datetime as dt
import html
import importlib
import io
import math
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from optax_sam.train.reports import machine

Rows = list[dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Metric:
  """The metric by which methods are compared, besides the loss."""

  name: str = 'accuracy'  # in the rows: `test_accuracy`
  higher_is_better: bool = True
  percent: bool = True  # a fraction that pages show in percent

  @property
  def title(self) -> str:
    """The name in words."""
    return self.name.replace('_', ' ')

  @property
  def scale(self) -> float:
    """The factor from a value to the number that pages show."""
    return 100.0 if self.percent else 1.0

  @property
  def spec(self) -> str:
    """The format of that number."""
    return '.2f' if self.percent else '.4g'

  @property
  def sign(self) -> int:
    """1 if a larger value is better, else -1."""
    return 1 if self.higher_is_better else -1

  def text(self, value: float) -> str:
    """Returns a value as pages show it, with its unit."""
    return f'{self.scale * value:{self.spec}}{" %" * self.percent}'


@dataclasses.dataclass(frozen=True)
class Trial:
  """One training run of the search for settings."""

  method: str
  settings: dict[str, object]
  seed: int
  validation_loss: float
  validation_metric: float  # NaN if it diverged


@dataclasses.dataclass(frozen=True)
class Run:
  """One training run: one method, one seed.

  Rows of `log` have the `step` (number of steps taken), `loss` (at the
  unperturbed parameters), `second_gradients` (number of steps so far with a
  perturbed gradient), norms, and so on. Rows of `evaluations` have `test_loss`,
  `test_METRIC`, `train_loss` and `train_METRIC`. In comparisons both have
  `gradients` (evaluations so far, in units of a step of the base optimizer) and
  `seconds` (of training so far).
  """

  method: str
  seed: int  # of the initial parameters and of the order of the examples
  settings: dict[str, object]  # the method's own
  log: Rows
  evaluations: Rows  # the last one at the end of the run
  sharpness: dict[str, float]  # `sam_sharpness`, `top_eigenvalue`, ...
  seconds: float  # wall time
  # `position` and `loss` along a random direction through the solution.
  landscape: Rows = dataclasses.field(default_factory=list)
  # On held-out examples: `validation_loss`, `validation_accuracy`, ...
  validations: Rows = dataclasses.field(default_factory=list)
  # The metric of every test example at the end of the run.
  test_values: list[float] = dataclasses.field(default_factory=list)
  stopped: str = ''  # the reason of an early stop

  @property
  def steps(self) -> int:
    """Number of steps at the last row of any kind."""
    rows = self.log[-1:] + self.evaluations[-1:]
    return int(max((row['step'] for row in rows), default=0))

  def last(self, name: str) -> float:
    """Returns a number of the last evaluation, NaN if there is none."""
    row = self.evaluations[-1] if self.evaluations else {}
    return float(row.get(name, math.nan))

  @property
  def second_gradient_share(self) -> float | None:
    """Fraction of the logged steps that took a perturbed gradient."""
    last = self.log[-1] if self.log else {}
    taken = last.get('second_gradients', math.nan)
    return taken / last['step'] if math.isfinite(taken) else None

  @property
  def diverged(self) -> bool:
    """Whether it was stopped, or the last losses are not all finite."""
    last = [row.get('loss', 0.0) for row in self.log[-1:]]
    last += [row.get('test_loss', 0.0) for row in self.evaluations[-1:]]
    return bool(self.stopped) or not all(map(math.isfinite, last))


@dataclasses.dataclass(frozen=True)
class Timing:
  """Time and memory of one method's step, with an entry per round.

  Times are also relative to that of the base optimizer in the same round. The
  memory, in addition to inputs and outputs, is None if it is unknown.
  """

  method: str
  milliseconds: list[float]
  relative: list[float]
  temporary_bytes: int | None


def _now() -> str:
  return dt.datetime.now().astimezone().isoformat(timespec='seconds')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
  """The results of `optax-sam compare`.

  Attributes:
    settings: Settings common to all runs (dataset, model, batch size, ...).
    command: The command line.
    base: Method name of the base optimizer.
    runs: The runs.
    timings: Time per step of the methods that were timed.
    versions: Versions of Python and of the libraries.
    machine: Device, processor, cores and operating system.
    started: Start time, as an ISO date.
    seconds: Wall time of the whole comparison.
    interrupted: Whether the comparison was interrupted.
    total_steps: Steps of a run.
    test_examples: Number of test examples.
    sharpness_radius: Radius of the SAM sharpness at the end of the runs.
    metric: The metric.
    budget: What is equal for all methods: 'steps', 'gradients' or 'seconds'.
    trials: The runs of the search for settings, if there was one.
    planes: By method, rows of `x`, `y` and `loss` around its first solution.
    spectra: By method, rows of `eigenvalue` and `density` of the Hessian there.
  """

  settings: dict[str, object]
  command: str
  base: str
  runs: list[Run]
  timings: list[Timing] = dataclasses.field(default_factory=list)
  versions: dict[str, str] = dataclasses.field(default_factory=machine.versions)
  machine: dict[str, str] = dataclasses.field(default_factory=machine.describe)
  started: str = dataclasses.field(default_factory=_now)
  seconds: float = 0.0
  interrupted: bool = False
  total_steps: int = 0
  test_examples: int = 0
  sharpness_radius: float = 0.0
  metric: Metric = Metric()
  budget: str = 'steps'
  trials: list[Trial] = dataclasses.field(default_factory=list)
  planes: dict[str, Rows] = dataclasses.field(default_factory=dict)
  spectra: dict[str, Rows] = dataclasses.field(default_factory=dict)

  @property
  def methods(self) -> list[str]:
    """The methods with a run, base optimizer first."""
    names = dict.fromkeys(run.method for run in self.runs)
    return sorted(names, key=lambda name: name != self.base)

  @property
  def seeds(self) -> list[int]:
    """The seeds with a run."""
    return sorted({run.seed for run in self.runs})

  def runs_of(self, method: str) -> list[Run]:
    """Returns the runs of a method, in order."""
    return [run for run in self.runs if run.method == method]

  def scores(self, method: str) -> dict[int, float]:
    """Returns the final test metric of a method's runs by seed.

    If the metric of a diverged run is not finite at its end, the run counts
    with the worst value of its evaluations. Without any, it does not count.
    """
    name, found = f'test_{self.metric.name}', {}
    for run in self.runs_of(method):
      values = finite(row.get(name) for row in run.evaluations)
      if math.isfinite(run.last(name)):
        found[run.seed] = run.last(name)
      elif run.diverged and values:
        found[run.seed] = min(values, key=lambda x: self.metric.sign * x)
    return found

  def ranking(self) -> list[str]:
    """Returns the methods with a score, best mean first."""
    means = {name: mean(self.scores(name).values()) for name in self.methods}
    known = {name: x for name, x in means.items() if x is not None}
    return sorted(known, key=lambda name: -self.metric.sign * known[name])

  def best(self) -> str:
    """Returns the method with the best mean score.

    It may be the base optimizer, which comes first among equal ones. The best
    method need not be better than the next one by more than chance: `table` has
    the intervals. Raises a ValueError if no run has a score.
    """
    if not self.ranking():
      msg = 'comparison: no run is finished, so there is no best method'
      raise ValueError(msg)
    return self.ranking()[0]

  def table(self, width: int = 100) -> str:
    """Returns the results as text of a width, as the command prints them."""
    from rich.console import Console

    from optax_sam.train.reports.comparison_report import print_table

    text = io.StringIO()
    print_table(self, Console(file=text, width=width))
    return text.getvalue()

  def to_dataframe(self) -> Any:
    """Returns a `pandas.DataFrame` with one row per run."""
    from optax_sam.train.reports.tables import results_csv

    pandas: Any = importlib.import_module('pandas')
    return pandas.read_csv(io.StringIO(results_csv(self)))

  def report(self, path: str | pathlib.Path) -> pathlib.Path:
    """Writes the report, and returns the path of its page.

    Args:
      path: A file such as `report.html`; or a directory, which gets
        report.html, results.csv and metrics.jsonl.
    """
    from optax_sam.train.reports import comparison_report

    path = pathlib.Path(path)
    directory = path.parent if path.suffix == '.html' else path
    directory.mkdir(parents=True, exist_ok=True)
    return comparison_report.write_report(self, path)

  def _repr_html_(self) -> str:
    """Returns a compact table for notebooks."""
    from optax_sam.train.reports import tables

    rows = ''
    for line in tables.texts(tables.results(self)):
      cells = ''.join(f'<td>{html.escape(text)}</td>' for text in line)
      rows += f'<tr>{cells}</tr>'
    return f'<table>{rows}</table>'


def finite(values: Iterable[float | None]) -> list[float]:
  """Returns the finite values as Python floats."""
  return [float(x) for x in values if x is not None and math.isfinite(x)]


def mean(values: Iterable[float | None]) -> float | None:
  """Returns the mean of the finite values, None if there are none."""
  kept = finite(values)
  return float(np.mean(kept)) if kept else None
