"""The report on finished runs: HTML page, CSV files, terminal table."""

import math
import pathlib

from rich.console import Console
from rich.table import Table
from rich.text import Text

from optax_sam.train.config import output_dir
from optax_sam.train.config.configs import SharpnessConfig
from optax_sam.train.reports import display, figures, page, tables
from optax_sam.train.reports.formats import count, duration, printable
from optax_sam.train.reports.results import Comparison

ASCENT_STEPS = 20  # for a SAM sharpness close to the maximum
_NUMBERS, _POINTS, _PAGE = 'sharpness.csv', 'landscape.csv', 'report.html'
FILES = frozenset({output_dir.CONFIG, _NUMBERS, _POINTS, _PAGE})


def write(
  measured: Comparison, config: SharpnessConfig, directory: pathlib.Path
) -> None:
  """Writes all files of the report into an existing directory.

  Args:
    measured: The runs, each as one of a method of its own.
    config: The configuration of the command.
    directory: The directory.
  """
  points = [
    {'run': run.method, **row} for run in measured.runs for row in run.landscape
  ]
  files = {
    _NUMBERS: tables.csv_of(_rows(measured)),
    _POINTS: tables.csv_of(points),
    _PAGE: render_page(measured, config),
  }
  for name, text in files.items():
    output_dir.write(directory / name, text.encode())


def _rows(measured: Comparison) -> list[dict[str, str | float]]:
  return [
    {
      'run': run.method,
      'test_accuracy': run.last('test_accuracy'),
      **run.sharpness,
    }
    for run in measured.runs
  ]


def print_table(
  measured: Comparison, config: SharpnessConfig, console: Console
) -> None:
  """Prints the numbers, a column per run."""
  table = Table(title='Sharpness', caption=_setup(config))
  heads, *lines = zip(*(row.items() for row in _rows(measured)), strict=True)
  table.add_column('', no_wrap=True)
  for _, name in heads:
    header = Text(printable(name))
    table.add_column(header, justify='right', overflow='fold')
  for line in lines:
    numbers = [f'{value:.4g}' for _, value in line]
    table.add_row(line[0][0].replace('_', ' '), *numbers)
  console.print(table)


def _setup(config: SharpnessConfig) -> str:
  return (
    f'On the first {count(config.examples, "training example")}, in evaluation'
    f' mode. SAM sharpness at radius {config.rho}, in 1 step and in'
    f' {ASCENT_STEPS}; adaptive sharpness at radius {config.adaptive_rho};'
    f' trace by {config.probes} random vectors.'
  )


def render_page(measured: Comparison, config: SharpnessConfig) -> str:
  """Renders the report on finished runs as a page of HTML."""
  settings = {run.method: run.settings for run in measured.runs}
  common = {
    name: value
    for name, value in measured.runs[0].settings.items()
    if all(of_run.get(name) == value for of_run in settings.values())
  }
  missing = [
    f'{run.method} ({name.replace("_", " ")})'
    for run in measured.runs
    for name, value in run.sharpness.items()
    if not math.isfinite(value)
  ]
  title = f'Sharpness of {count(len(settings), "finished run")}'
  warning = f'Missing, not finite or not converged: {"; ".join(missing)}.'
  return page.render(
    display.styles(measured.methods, base=''),
    [tables.results(measured)],
    {'Sharpness and landscape': figures.solutions(measured)},
    measured,
    kind='Sharpness of finished runs',
    title=title,
    headline=title,
    setup=_setup(config),
    warnings=[warning] * bool(missing),
    glossary='sharpness_glossary.html',
    config=config,
    facts={
      'Measurement': {
        'duration': duration(measured.seconds),
        'seed of everything random': config.seed,
      },
      'Settings that differ': {
        name: {key: of_run[key] for key in of_run if key not in common}
        for name, of_run in settings.items()
      },
      'Settings of all runs': {
        name.replace('_', ' '): value for name, value in common.items()
      },
    },
  )
