"""Tables of a comparison, for page, terminal, CSV, Markdown and LaTeX."""

import csv
import dataclasses
import io
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optax_sam.train.reports import curves, formats
from optax_sam.train.reports.display import title
from optax_sam.train.reports.formats import MISSING, gain, number, score
from optax_sam.train.reports.results import Comparison, Metric
from optax_sam.train.reports.summary import Summary, mean, summarize

if TYPE_CHECKING:
  import rich.table

# Characters with a meaning in LaTeX, and what replaces them.
_LATEX = {
  '\\': r'\textbackslash{}',
  **{character: f'\\{character}' for character in '&%$#_{}'},
  '~': r'\textasciitilde{}',
  '^': r'\textasciicircum{}',
  '±': r'$\pm$',
  formats.TIMES: r'$\times$',
  formats.MINUS: r'$-$',
  MISSING: '--',
}
HIGHER = '\N{BLACK UP-POINTING TRIANGLE}'
LOWER = '\N{BLACK DOWN-POINTING TRIANGLE}'
OPEN = '~'


@dataclasses.dataclass(frozen=True)
class Cell:
  """A number of a table."""

  text: str
  value: float | None = None  # by which the page sorts
  note: str = ''  # its uncertainty
  detail: str = ''  # what only the page shows
  verdict: str = ''  # of a difference


@dataclasses.dataclass(frozen=True)
class Table:
  """A table with a row for each method, or for each run."""

  name: str
  title: str
  columns: Sequence[tuple[str, str]]  # with a note such as a unit
  rows: Mapping[str, Sequence[Cell]]


def cell(value: float | None, spec: str = '.3g', note: str = '') -> Cell:
  """Returns the cell of a number, which may be missing or not finite."""
  is_finite = value is not None and math.isfinite(value)
  return Cell(number(value, spec), value if is_finite else None, note)


def results(comparison: Comparison) -> Table:
  """Returns the main table, without columns in which nothing was measured."""
  metric, base = comparison.metric, title(comparison.base)
  unit, points = ('%, ', 'points, ') if metric.percent else ('', '')
  columns = [
    (f'test {metric.title}', f'{unit}± std'),
    (f'difference to {base}', f'{points}95% interval'),
    ('perturbed gradients', '% of steps'),
    ('time per step', f'{base} = 1'),
    *((name, '') for name in comparison.measures.values()),
    ('peak temporary memory', 'of a step, MiB'),
    ('runs', 'complete'),
  ]
  rows = {row.method: _cells(row, metric) for row in summarize(comparison)}
  is_known = lambda cell: cell.value is not None and cell.text != 'base'
  kept = [
    index
    for index in range(len(columns))
    if any(is_known(cells[index]) for cells in rows.values())
  ]
  return Table(
    'results',
    'Results',
    [columns[index] for index in kept],
    {name: [of[index] for index in kept] for name, of in rows.items()},
  )


def _cells(row: Summary, metric: Metric) -> list[Cell]:
  found, std = row.difference, row.score_deviation
  p = found.adjusted_p_value
  ends = [gain(end, metric) for end in found.interval or ()]
  detail = found.verdict if found.by_seed else ''
  if p is not None:
    detail += ', p < 0.001' if p < 0.001 else f', p = {p:.2g}'
  note = f'({" to ".join(ends)})' if ends else ''
  difference = Cell(
    gain(found.mean, metric), found.mean, note, detail, found.verdict
  )
  time, quartiles = row.relative_time, row.relative_time_quartiles or ()
  span = ' to '.join(f'{end:.2f}' for end in quartiles)
  failed = {'diverged': row.diverged, 'unfinished': row.unfinished}
  failures = [f'{size} {what}' for what, size in failed.items() if size]
  plus_minus = '' if std is None else f'± {score(std, metric)}'
  return [
    Cell(score(row.score, metric), row.score, plus_minus),
    Cell('base', 0.0) if row.is_base else difference,
    cell(row.second_gradients and 100 * row.second_gradients),
    Cell(number(time, '.2f') + formats.TIMES * bool(time), time, detail=span),
    *map(cell, row.sharpness.values()),
    cell(row.temporary_bytes and row.temporary_bytes / 2**20),
    Cell(str(row.seeds), row.seeds, detail=', '.join(failures)),
  ]


def fit(comparison: Comparison) -> Table:
  """Returns the table of training values, losses and costs."""
  metric = comparison.metric
  columns = [
    (f'test {metric.title}', '%' * metric.percent),
    (f'training {metric.title}', '%' * metric.percent),
    ('gap', 'training minus test'),
    ('test loss', ''),
    ('training loss', ''),
    ('gradients', 'of a run'),
    ('seconds', 'of a run'),
  ]
  rows = {}
  for method in comparison.methods:
    done = comparison.complete_runs(method)
    test, train, *losses = (
      mean(run.last(f'{data}_{name}') for run in done)
      for name in (metric.name, 'loss')
      for data in ('test', 'train')
    )
    gap = None if test is None or train is None else train - test
    gradients, seconds = curves.spent(comparison, method)
    rows[method] = [
      Cell(score(test, metric), test),
      Cell(score(train, metric), train),
      Cell(gain(gap, metric), gap),
      *map(cell, losses),
      cell(gradients, ',.0f'),
      cell(seconds),
    ]
  return Table('fit', 'Training and test', columns, rows)


def by_seed(comparison: Comparison) -> Table:
  """Returns the table of the final test metric of each seed."""
  rows = {}
  for method in comparison.methods:
    of_seeds = map(comparison.scores(method).get, comparison.seeds)
    rows[method] = [Cell(score(x, comparison.metric), x) for x in of_seeds]
  columns = [(f'seed {seed}', '') for seed in comparison.seeds]
  return Table('seeds', 'By seed', columns, rows)


def texts(table: Table) -> list[list[str]]:
  """Returns the lines of a table as texts, the first one its head."""
  head = [f'{name} ({note})' if note else name for name, note in table.columns]
  return [
    ['Method', *(text[0].upper() + text[1:] for text in head)],
    *(
      [title(name), *(f'{one.text} {one.note}'.strip() for one in cells)]
      for name, cells in table.rows.items()
    ),
  ]


def markdown(table: Table) -> str:
  """Returns a table in Markdown."""
  lines = [
    [re.sub(r'([|\\`*_<\[])', r'\\\1', text) for text in line]
    for line in texts(table)
  ]
  lines.insert(1, ['---', *['---:'] * len(table.columns)])
  return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def latex(table: Table) -> str:
  """Returns a table for LaTeX, with rules of booktabs."""
  head, *rows = [
    ' & '.join(''.join(_LATEX.get(c, c) for c in text) for text in line)
    for line in texts(table)
  ]
  body = ''.join(f'  {row} \\\\\n' for row in rows)
  return (
    f'\\begin{{tabular}}{{l{"r" * len(table.columns)}}}\n  \\toprule\n'
    f'  {head} \\\\\n  \\midrule\n{body}  \\bottomrule\n\\end{{tabular}}\n'
  )


def for_terminal(table: Table, width: int) -> 'rich.table.Table':
  """Returns a table for a terminal, with as many columns as fit."""
  from rich import box
  from rich import table as rich_table
  from rich.text import Text

  found = rich_table.Table(
    box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
  )
  found.add_column('method', overflow='fold')
  names = [title(name) for name in table.rows]
  rows = [[Text(name)] for name in names]
  room = width - max(map(len, names), default=0) - 2
  for index, (name, note) in enumerate(table.columns):
    column = [_marked(cells[index]) for cells in table.rows.values()]
    head = f'{name}, {note}' if note else name
    widest = max(map(len, [*head.split(), *(text for text, _ in column)]))
    head = textwrap.fill(head, widest)
    room -= max(widest, *map(len, head.splitlines())) + 2
    if room < 0:
      break
    found.add_column(head, justify='right', no_wrap=True)
    for row, (text, style) in zip(rows, column, strict=True):
      row.append(Text(text, style))
  for row in rows:
    found.add_row(*row)
  return found


def _marked(one: Cell) -> tuple[str, str]:
  """Returns the text of a cell for a terminal, and its style."""
  text = f'{one.text} {one.note}'.strip()
  if one.verdict in ('better', 'worse'):
    mark = HIGHER if (one.value or 0.0) > 0 else LOWER
    return f'{mark} {text}', 'green' if one.verdict == 'better' else 'red'
  return f'{OPEN} {text}' if one.verdict and one.note else text, ''


def results_csv(comparison: Comparison) -> str:
  """Returns a CSV table with a row per run, in full precision."""
  name = comparison.metric.name
  measured = [f'test_{name}', 'test_loss', f'train_{name}', 'train_loss']
  return csv_of(
    [
      {
        'method': run.method,
        'seed': run.seed,
        'steps': run.steps,
        'complete': comparison.is_complete(run),
        'diverged': run.diverged,
        **{key: (run.evaluations or [{}])[-1].get(key) for key in measured},
        'second_gradient_share': run.second_gradient_share,
        'sam_sharpness': None,
        'top_eigenvalue': None,
        **run.sharpness,
        'seconds': run.seconds,
        **{f'setting_{key}': value for key, value in run.settings.items()},
      }
      for run in comparison.runs
    ]
  )


def csv_of(rows: Sequence[Mapping[str, Any]]) -> str:
  """Returns rows as comma-separated values; missing ones are empty."""
  file = io.StringIO()
  columns = list(dict.fromkeys(key for row in rows for key in row))
  writer = csv.DictWriter(file, columns, restval='', lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  return file.getvalue()
