"""The report on finished runs: HTML page, CSV files, terminal table."""

import csv
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from optax_sam import landscape
from optax_sam.train.config import output_dir
from optax_sam.train.reports import random_lines
from optax_sam.train.reports.measurements import ASCENT_STEPS, Measurements
from optax_sam.train.reports.sharpness_page import render_page

_NUMBERS, _POINTS, _PLOT = 'sharpness.csv', 'landscape.csv', 'landscape.png'
_PAGE = 'report.html'
FILES = frozenset({output_dir.CONFIG, _NUMBERS, _POINTS, _PLOT, _PAGE})


def write(measured: Measurements, directory: pathlib.Path) -> None:
  """Writes all files of the report into an existing directory."""
  from matplotlib.figure import Figure

  _write_table(
    directory / _NUMBERS,
    ({'run': name} | numbers for name, numbers in measured.numbers.items()),
  )
  _write_table(
    directory / _POINTS,
    (
      {'run': name} | row
      for name, line in measured.lines.items()
      for row in random_lines.rows(line)
    ),
  )
  figure = Figure(figsize=(6, 4), layout='constrained')
  axes = landscape.plot_lines(measured.lines, figure.subplots())
  axes.set_title('Along a random direction, filter by filter')
  axes.set_ylim(0, random_lines.top(measured.lines))
  figure.savefig(directory / _PLOT, dpi=150)
  (directory / _PAGE).write_text(render_page(measured), encoding='utf-8')


def print_table(measured: Measurements, console: Console) -> None:
  """Prints the numbers, a column per run."""
  config = measured.config
  table = Table(
    title='Sharpness',
    caption=f'Of the first {config.examples} training examples, in evaluation '
    f'mode. SAM sharpness at rho={config.rho}, in 1 step and in '
    f'{ASCENT_STEPS}; adaptive sharpness at rho={config.adaptive_rho}, '
    f'p=infinity; trace by {config.probes} probes.',
  )
  table.add_column('', no_wrap=True)
  for name in measured.numbers:
    table.add_column(name, justify='right', overflow='fold')
  by_run = list(measured.numbers.values())
  for key in by_run[0]:
    table.add_row(
      key.replace('_', ' '), *[f'{numbers[key]:.4g}' for numbers in by_run]
    )
  console.print(table)


def _write_table(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
  rows = list(rows)
  with path.open('w', encoding='utf-8', newline='') as file:
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
