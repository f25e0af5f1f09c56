"""The report on finished runs: HTML page, CSV files, terminal table."""

import pathlib
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from optax_sam.train.config import output_dir
from optax_sam.train.config.configs import SharpnessConfig
from optax_sam.train.reports import figures, page, tables
from optax_sam.train.reports.formats import count, printable
from optax_sam.train.reports.results import Comparison

ASCENT_STEPS = 20  # for a SAM sharpness close to the maximum
_NUMBERS, _POINTS, _PAGE = 'sharpness.csv', 'landscape.csv', 'report.html'
FILES = frozenset({output_dir.CONFIG, _NUMBERS, _POINTS, _PAGE})


def write(
  measured: Comparison, config: SharpnessConfig, directory: pathlib.Path
) -> None:
  """Writes all files of the report into an existing directory."""
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


def _rows(measured: Comparison) -> list[dict[str, Any]]:
  name = 'test_accuracy'
  given = measured.runs
  return [{'run': x.method, name: x.last(name), **x.sharpness} for x in given]


def print_table(
  measured: Comparison, config: SharpnessConfig, console: Console
) -> None:
  """Prints the numbers, a column per run."""
  table = Table(title='Sharpness', caption=_setup(config))
  rows = _rows(measured)
  table.add_column('', no_wrap=True)
  for row in rows:
    header = Text(printable(row.pop('run')))
    table.add_column(header, justify='right', overflow='fold')
  for name in rows[0]:
    numbers = [f'{row[name]:.4g}' for row in rows]
    table.add_row(name.replace('_', ' '), *numbers)
  console.print(table)


def _setup(config: SharpnessConfig) -> str:
  return (
    f'On the first {count(config.examples, "training example")}, in evaluation'
    f' mode. SAM sharpness at radius {config.rho}, in 1 step and in'
    f' {ASCENT_STEPS}; adaptive sharpness at radius {config.adaptive_rho};'
    f' trace by {config.probes} random vectors; seed {config.seed}.'
  )


def render_page(measured: Comparison, config: SharpnessConfig) -> str:
  """Renders the report on finished runs as a page of HTML."""
  title = f'Sharpness of {count(len(measured.runs), "finished run")}'
  return page.render(
    measured,
    [tables.results(measured)],
    {'Sharpness and landscape': figures.solutions(measured)},
    title=title,
    headline=title,
    setup=_setup(config),
    warnings=[],
    glossary='sharpness_glossary.html',
    config=config,
    facts={'Settings': {run.method: run.settings for run in measured.runs}},
  )
