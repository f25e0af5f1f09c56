"""The results of a comparison."""

import dataclasses
import html
import importlib
import io
import math
import operator
import pathlib
from typing import Any

from optax_sam.train.reports.summary import finite, summarize


@dataclasses.dataclass(frozen=True)
class Metric:
  """What a comparison is judged by, besides the loss."""

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
  def sign(self) -> int:
    """1 if a larger value is better, else -1."""
    return 1 if self.higher_is_better else -1


@dataclasses.dataclass(frozen=True)
class Trial:
  """One training run of the search for settings.

  The metric is NaN if it diverged; `second_gradients` is the fraction of the
  steps that took a perturbed gradient.
  """

  method: str
  settings: dict[str, object]
  seed: int
  steps: int
  validation_loss: float
  validation_metric: float
  second_gradients: float = 0.0


@dataclasses.dataclass(frozen=True)
class Run:
  """One training run: one method, one seed.

  Rows of `log` have the `step` (number of steps taken), `loss` (at the
  unperturbed parameters), `second_gradients` (number of steps so far with a
  perturbed gradient), norms, and so on. Rows of `evaluations` have `test_loss`,
  `test_METRIC`, `train_loss` and `train_METRIC`. Both may have `gradients`
  (evaluations so far, in units of a step of the base optimizer) and `seconds`
  (of training so far).
  """

  method: str
  seed: int  # of the initial parameters and of the order of the examples
  settings: dict[str, object]  # the method's own
  log: list[dict[str, float]]
  evaluations: list[dict[str, float]]  # the last one at the end of the run
  sharpness: dict[str, float]  # `sam_sharpness`, `top_eigenvalue`, ...
  seconds: float  # wall time
  # `position` and `loss` along a random direction through the solution.
  landscape: list[dict[str, float]] = dataclasses.field(default_factory=list)
  # On held-out examples: `validation_loss`, `validation_accuracy`, ...
  validations: list[dict[str, float]] = dataclasses.field(default_factory=list)
  # The metric of every test example at the end of the run.
  test_values: list[float] = dataclasses.field(default_factory=list)
  planned_steps: int = 0  # 0 for those of the comparison
  stopped: str = ''  # the reason of an early stop

  @property
  def steps(self) -> int:
    """Number of steps at the last row of any kind."""
    rows = self.log[-1:] + self.evaluations[-1:]
    return int(max((row['step'] for row in rows), default=0))

  def last(self, name: str) -> float:
    """Returns a number of the last evaluation, NaN if there is none."""
    if not self.evaluations:
      return math.nan
    return float(self.evaluations[-1].get(name, math.nan))

  @property
  def second_gradient_share(self) -> float | None:
    """Fraction of the logged steps that took a perturbed gradient."""
    last = self.log[-1] if self.log else {}
    steps, taken = last.get('step', 0), last.get('second_gradients', math.nan)
    return taken / steps if steps > 0 and math.isfinite(taken) else None

  @property
  def numbers(self) -> list[float]:
    """Logged training losses and everything that was evaluated."""
    losses = [row['loss'] for row in self.log if 'loss' in row]
    rows = [row | {'seconds': 0, 'gradients': 0} for row in self.evaluations]
    return losses + [value for row in rows for value in row.values()]

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


@dataclasses.dataclass(frozen=True)
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
    total_steps: Steps of a complete run.
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
  timings: list[Timing]
  versions: dict[str, str]
  machine: dict[str, str]
  started: str
  seconds: float
  interrupted: bool
  total_steps: int
  test_examples: int
  sharpness_radius: float
  metric: Metric = Metric()
  budget: str = 'steps'
  trials: list[Trial] = dataclasses.field(default_factory=list)
  planes: dict[str, list[dict[str, float]]] = dataclasses.field(
    default_factory=dict
  )
  spectra: dict[str, list[dict[str, float]]] = dataclasses.field(
    default_factory=dict
  )

  @property
  def methods(self) -> list[str]:
    """The methods with a run, base optimizer first."""
    names = list(dict.fromkeys(run.method for run in self.runs))
    return sorted(names, key=lambda name: name != self.base)

  @property
  def seeds(self) -> list[int]:
    """The seeds with a run."""
    return sorted({run.seed for run in self.runs})

  @property
  def measures(self) -> dict[str, str]:
    """Names and titles of the measures of sharpness."""
    names = dict.fromkeys(name for run in self.runs for name in run.sharpness)
    words = {name: name.replace('_', ' ') for name in names}
    return {name: one.replace('sam ', 'SAM ') for name, one in words.items()}

  def runs_of(self, method: str) -> list[Run]:
    """Returns the runs of a method, in order."""
    return [run for run in self.runs if run.method == method]

  def is_complete(self, run: Run) -> bool:
    """Whether a run counts: it is finished or diverged."""
    planned = run.planned_steps or self.total_steps
    return run.diverged or run.steps >= planned

  def complete_runs(self, method: str) -> list[Run]:
    """Returns the runs of a method that count."""
    return [run for run in self.runs_of(method) if self.is_complete(run)]

  def did_nothing(self, method: str) -> bool:
    """Whether a method equals its base: same numbers, or auxiliary loss 0."""
    runs = self.runs_of(method)
    rows = [row for run in runs for row in run.log if 'trajectory_loss' in row]
    if rows:
      return not any(row['trajectory_loss'] for row in rows)
    base = {run.seed: run.numbers for run in self.runs_of(self.base)}
    return any(run.numbers for run in runs) and all(
      run.numbers == base.get(run.seed) for run in runs
    )

  def scores(self, method: str) -> dict[int, float]:
    """Returns the final test metric of a method's complete runs by seed.

    If the metric of a diverged run is not finite at its end, the run counts
    with the worst value of its evaluations. Without any, it does not count.
    """
    name, scores = f'test_{self.metric.name}', {}
    worst = min if self.metric.higher_is_better else max
    for run in self.complete_runs(method):
      score = run.last(name)
      if run.diverged and not math.isfinite(score):
        evaluated = finite(row.get(name) for row in run.evaluations)
        score = worst(evaluated, default=math.nan)
      if math.isfinite(score):
        scores[run.seed] = score
    return scores

  def test_values(self, method: str) -> dict[int, list[float]]:
    """Returns the metric of each test example by seed, where it is measured."""
    return {
      run.seed: run.test_values
      for run in self.complete_runs(method)
      if run.test_values and not run.diverged
    }

  def best(self) -> str:
    """Returns the method with the best mean score, over complete runs.

    Of equal scores, that of the method with the faster steps counts. The base
    optimizer may be the best. The best method need not be better than the next
    one by more than chance: `table` has the intervals.

    Raises:
      ValueError: If no run is complete.
    """
    rows = [
      (-self.metric.sign * row.score, row.relative_time or math.inf, row.method)
      for row in summarize(self)
      if row.score is not None
    ]
    if not rows:
      msg = 'comparison: no run is complete, so there is no best method'
      raise ValueError(msg)
    return min(rows, key=operator.itemgetter(0, 1))[-1]

  def table(self, width: int = 100) -> str:
    """Returns the results as text of a width, as the command prints them."""
    from rich.console import Console

    from optax_sam.train.reports.comparison_report import print_table

    text = io.StringIO()
    print_table(self, Console(file=text, width=width))
    return text.getvalue()

  def to_dataframe(self) -> Any:
    """Returns a `pandas.DataFrame` with one row per run.

    Raises:
      ImportError: If pandas is not installed.
    """
    from optax_sam.train.reports.tables import results_csv

    try:
      pandas: Any = importlib.import_module('pandas')
    except ModuleNotFoundError:
      msg = 'to_dataframe needs pandas: pip install pandas'
      raise ImportError(msg) from None
    return pandas.read_csv(io.StringIO(results_csv(self)))

  def report(self, path: str | pathlib.Path) -> pathlib.Path:
    """Writes the report, and returns the path of its page.

    Args:
      path: A file such as `report.html`; or a directory, which gets
        report.html, results.csv and metrics.jsonl.
    """
    from optax_sam.train.config import output_dir
    from optax_sam.train.reports import comparison_report

    path = pathlib.Path(path)
    is_page = path.suffix == '.html'
    (path.parent if is_page else path).mkdir(parents=True, exist_ok=True)
    if is_page:
      output_dir.write(path, comparison_report.render_page(self).encode())
      return path
    comparison_report.write_report(self, path)
    return path / 'report.html'

  def _repr_html_(self) -> str:
    """Returns a compact table for notebooks."""
    from optax_sam.train.reports import tables

    rows = ''
    for line in tables.texts(tables.results(self)):
      cells = ''.join(f'<td>{html.escape(text)}</td>' for text in line)
      rows += f'<tr>{cells}</tr>'
    return f'<table>{rows}</table>'
