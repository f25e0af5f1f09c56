"""The report on finished runs: HTML page, CSV files, terminal table."""

import math
import pathlib

from rich.console import Console
from rich.table import Table
from rich.text import Text

from optax_sam.train.config import output_dir
from optax_sam.train.reports import display, figures, page, tables
from optax_sam.train.reports.formats import count, duration, printable
from optax_sam.train.reports.measurements import ASCENT_STEPS, Measurements
from optax_sam.train.reports.results import Comparison, Run

_NUMBERS, _POINTS, _PAGE = 'sharpness.csv', 'landscape.csv', 'report.html'
FILES = frozenset({output_dir.CONFIG, _NUMBERS, _POINTS, _PAGE})


def write(measured: Measurements, directory: pathlib.Path) -> None:
  """Writes all files of the report into an existing directory."""
  numbers, lines = measured.numbers.items(), measured.lines.items()
  points = [{'run': name, **row} for name, rows in lines for row in rows]
  rows = [{'run': name, **of_run} for name, of_run in numbers]
  files = {
    _NUMBERS: tables.csv_of(rows),
    _POINTS: tables.csv_of(points),
    _PAGE: render_page(measured),
  }
  for name, text in files.items():
    output_dir.write(directory / name, text.encode())


def print_table(measured: Measurements, console: Console) -> None:
  """Prints the numbers, a column per run."""
  table = Table(title='Sharpness', caption=_setup(measured))
  table.add_column('', no_wrap=True)
  for name in measured.numbers:
    header = Text(printable(name))
    table.add_column(header, justify='right', overflow='fold')
  by_run = list(measured.numbers.values())
  for key in by_run[0]:
    numbers = [f'{numbers[key]:.4g}' for numbers in by_run]
    table.add_row(key.replace('_', ' '), *numbers)
  console.print(table)


def _setup(measured: Measurements) -> str:
  config = measured.config
  return (
    f'On the first {count(config.examples, "training example")}, in evaluation'
    f' mode. SAM sharpness at radius {config.rho}, in 1 step and in'
    f' {ASCENT_STEPS}; adaptive sharpness at radius {config.adaptive_rho};'
    f' trace by {config.probes} random vectors.'
  )


def render_page(measured: Measurements) -> str:
  """Renders the report on finished runs as a page of HTML."""
  settings = measured.settings
  first = next(iter(settings.values()))
  common = {
    name: value
    for name, value in first.items()
    if all(of_run.get(name) == value for of_run in settings.values())
  }
  runs = [
    Run(
      name,
      seed=0,
      settings={},
      log=[],
      evaluations=[{'step': 0, 'test_accuracy': numbers.pop('test_accuracy')}],
      sharpness=numbers,
      seconds=math.nan,
      landscape=measured.lines[name],
    )
    for name, of_run in measured.numbers.items()
    for numbers in [dict(of_run)]
  ]
  found = Comparison(
    common,
    measured.command,
    base='',
    runs=runs,
    timings=[],
    versions=measured.versions,
    machine=measured.machine,
    started=measured.started,
    seconds=measured.seconds,
    interrupted=False,
    total_steps=0,
    test_examples=0,
    sharpness_radius=measured.config.rho,
  )
  missing = [
    f'{run.method} ({name.replace("_", " ")})'
    for run in runs
    for name, value in run.sharpness.items()
    if not math.isfinite(value)
  ]
  title = f'Sharpness of {count(len(runs), "finished run")}'
  warning = f'Missing, not finite or not converged: {"; ".join(missing)}.'
  return page.render(
    display.styles(list(settings), base=''),
    [tables.results(found)],
    {'Sharpness and landscape': figures.solutions(found)},
    found,
    kind='Sharpness of finished runs',
    title=title,
    headline=title,
    setup=_setup(measured),
    warnings=[warning] * bool(missing),
    glossary='sharpness_glossary.html',
    config=measured.config,
    facts={
      'Measurement': {
        'duration': duration(measured.seconds),
        'seed of everything random': measured.config.seed,
      },
      'Settings that differ': {
        name: {k: v for k, v in of_run.items() if k not in common}
        for name, of_run in settings.items()
      },
      'Settings of all runs': common,
    },
  )
