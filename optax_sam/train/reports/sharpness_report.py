"""The report on finished runs: HTML page, CSV files, terminal table."""

import math
import pathlib

from rich.console import Console
from rich.table import Table
from rich.text import Text

from optax_sam.train.config import output_dir
from optax_sam.train.reports import display, figures, page, tables
from optax_sam.train.reports.formats import count, duration, number, printable
from optax_sam.train.reports.measurements import ASCENT_STEPS, Measurements

_NUMBERS, _POINTS, _PAGE = 'sharpness.csv', 'landscape.csv', 'report.html'
FILES = frozenset({output_dir.CONFIG, _NUMBERS, _POINTS, _PAGE})
_SEVERAL = f'sam_sharpness_{ASCENT_STEPS}_steps'


def write(measured: Measurements, directory: pathlib.Path) -> None:
  """Writes all files of the report into an existing directory."""
  numbers, lines = measured.numbers.items(), measured.lines.items()
  points = [{'run': name, **row} for name, rows in lines for row in rows]
  files = {
    _NUMBERS: tables.csv_of(
      [{'run': name, **of_run} for name, of_run in numbers]
    ),
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
  config, runs = measured.config, list(measured.numbers)
  numbers = list(measured.numbers.values())
  names = dict.fromkeys(key for of in measured.settings.values() for key in of)
  settings = {
    name.replace('_', ' '): [of.get(name) for of in measured.settings.values()]
    for name in names
  }
  missing = [
    f'{run} ({key.replace("_", " ")})'
    for run, of_run in measured.numbers.items()
    for key, value in of_run.items()
    if not math.isfinite(value)
  ]
  measures = {
    'sam_sharpness': 'SAM sharpness, 1 step',
    _SEVERAL: f'SAM sharpness, {ASCENT_STEPS} steps',
    'adaptive_sharpness': 'Adaptive sharpness',
    **{
      f'eigenvalue_{index}': f'Eigenvalue {index} of the Hessian'
      for index in range(1, config.eigenvalues + 1)
    },
    'trace': 'Trace of the Hessian',
  }
  made, cells = [], [[tables.cell(100 * of['test_accuracy'])] for of in numbers]
  for key, title in measures.items():
    rows = []
    for run, of_run, row in zip(runs, numbers, cells, strict=True):
      center, bar, note = of_run[key], None, ''
      if key == 'trace':  # the only one that is an estimate
        error = of_run['trace_standard_error']
        bar, note = (center - error, center + error), f'± {number(error)}'
      row.append(tables.cell(center, note=note))
      rows.append({'method': run, 'center': center, 'bar': bar})
    made += figures.rows(title, 'Lower is flatter.', rows, name=key)
  differing = {k: of for k, of in settings.items() if of.count(of[0]) < len(of)}
  heads = [
    ('test accuracy, %', ''),
    *((title, '') for title in measures.values()),
  ]
  of_settings = zip(*differing.values(), strict=True)
  shown = [
    tables.Table(
      'measures', 'Measures', heads, dict(zip(runs, cells, strict=True))
    )
  ]
  if differing:
    heads = [(name, '') for name in differing]
    rows = {
      run: [tables.Cell(page.in_words(value)) for value in of_run]
      for run, of_run in zip(runs, of_settings, strict=True)
    }
    shown.append(tables.Table('settings', 'How the runs differ', heads, rows))
  return page.render(
    display.styles(runs, base=''),
    shown,
    {'In figures': made, 'Landscape': figures.landscape(measured.lines)},
    kind='Sharpness of finished runs',
    started=measured.started,
    title=f'Sharpness of {count(len(runs), "run")}',
    headline='',
    setup=_setup(measured),
    warnings=[f'Missing, not finite or not converged: {"; ".join(missing)}.']
    * bool(missing),
    glossary='sharpness_glossary.html',
    config=config,
    command=measured.command,
    facts={
      'Measurement': {
        'duration': duration(measured.seconds),
        'seed of everything random': config.seed,
      },
      'Settings of all runs': {
        name: of[0] for name, of in settings.items() if name not in differing
      },
      'Versions': measured.versions,
      'Machine': measured.machine,
    },
  )
