"""Tables of a comparison, for page, terminal, CSV, Markdown and LaTeX."""

import csv
import dataclasses
import io
import itertools
import re
import statistics
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from optax_sam.train.reports import formats, paired
from optax_sam.train.reports.formats import gain, number, score, title
from optax_sam.train.reports.results import Comparison, Metric, finite, mean

if TYPE_CHECKING:
  import rich.table

# Characters with a meaning in LaTeX, and what replaces them.
_LATEX = {
  '\\': r'\textbackslash{}',
  **{character: f'\\{character}' for character in '&%$#_{}'},
  '~': r'\textasciitilde{}',
  '^': r'\textasciicircum{}',
  '±': r'$\pm$',
  formats.MINUS: r'$-$',
  formats.MISSING: '--',
}
# The columns that fit into a terminal.
_IN_TERMINAL = 5


@dataclasses.dataclass(frozen=True)
class Cell:
  """A number of a table."""

  text: str
  value: float | None = None  # by which the page sorts
  note: str = ''  # its uncertainty
  detail: str = ''  # what only the page shows
  clear: bool = False  # a significant difference


@dataclasses.dataclass(frozen=True)
class Table:
  """A table with a row for each method, or for each run."""

  name: str
  title: str
  columns: Sequence[tuple[str, str]]  # with a note such as a unit
  rows: Mapping[str, Sequence[Cell]]


def _cell(
  values: Iterable[float | None],
  spec: str = '.3g',
  scale: float = 1.0,
  note: str = '',
) -> Cell:
  """Returns the cell of the mean of the values that are known and finite."""
  center = mean(values)
  shown = None if center is None else scale * center
  return Cell(number(shown, spec), shown, note)


def _table(
  name: str,
  title: str,
  columns: Sequence[tuple[str, str]],
  rows: Mapping[str, Sequence[Cell]],
) -> Table:
  """Returns a table without columns in which nothing was measured."""
  measured = [
    any(one.value is not None and one.text != 'base' for one in column)
    for column in zip(*rows.values(), strict=True)
  ]
  kept = lambda of: list(itertools.compress(of, measured))
  found = {row: kept(cells) for row, cells in rows.items()}
  return Table(name, title, kept(columns), found)


def results(comparison: Comparison) -> Table:
  """Returns the main table."""
  metric, base = comparison.metric, title(comparison.base)
  unit, points = ('%, ', 'points, ') if metric.percent else ('', '')
  measures = dict.fromkeys(x for run in comparison.runs for x in run.sharpness)
  columns = [
    (f'test {metric.title}', f'{unit}± std'),
    (f'difference to {base}', f'{points}95% interval'),
    ('perturbed gradients', '% of steps'),
    ('time per step', f'{base} = 1'),
    *((x.replace('_', ' ').replace('sam ', 'SAM '), '') for x in measures),
    ('peak temporary memory', 'of a step, MiB'),
    ('runs', ''),
  ]
  timings, rows = {one.method: one for one in comparison.timings}, {}
  for name, difference in paired.differences(comparison).items():
    runs = comparison.runs_of(name)
    scores = list(comparison.scores(name).values())
    spread = float(np.std(scores, ddof=1)) if scores[1:] else None
    std = '' if spread is None else f'± {score(spread, metric)}'
    timing = timings.get(name)
    times = finite(timing.relative) if timing else []
    lost = sum(run.diverged for run in runs)
    failures = f'{lost} diverged' if lost else ''
    rows[name] = [
      _cell(scores, metric.spec, metric.scale, std),
      Cell('base', 0.0)
      if name == comparison.base
      else _difference(difference, metric),
      _cell([run.second_gradient_share for run in runs], scale=100),
      _cell([statistics.median(times)] if times else [], '.2f'),
      *(
        _cell(run.sharpness.get(measure) for run in runs)
        for measure in measures
      ),
      _cell([timing.temporary_bytes] if timing else [], scale=2**-20),
      Cell(str(len(scores)), len(scores), detail=failures),
    ]
  return _table('results', 'Results', columns, rows)


def _difference(found: paired.Difference, metric: Metric) -> Cell:
  ends = [gain(end, metric) for end in found.interval or ()]
  note, p = f'({" to ".join(ends)})' if ends else '', found.adjusted_p_value
  if found.significant:
    note += f' {found.verdict}'
  detail = [found.verdict] if found.by_seed and not found.significant else []
  if p is not None:
    detail.append('p < 0.001' if p < 0.001 else f'p = {p:.2g}')
  center, mean = gain(found.mean, metric), found.mean
  return Cell(center, mean, note, ', '.join(detail), found.significant)


def fit(comparison: Comparison) -> Table:
  """Returns the table of training values, losses and costs."""
  metric = comparison.metric
  percent, given = '%' * metric.percent, (metric.spec, metric.scale)
  columns = [
    (f'training {metric.title}', percent),
    ('gap', 'training minus test'),
    ('test loss', ''),
    ('training loss', ''),
    ('gradients', 'of a run'),
    ('seconds', 'of a run'),
  ]
  rows = {}
  test, train = (f'{data}_{metric.name}' for data in ('test', 'train'))
  for method in comparison.methods:
    last = [run.last for run in comparison.runs_of(method)]
    rows[method] = [
      _cell((of(train) for of in last), *given),
      _cell((of(train) - of(test) for of in last), f'+{given[0]}', given[1]),
      _cell(of('test_loss') for of in last),
      _cell(of('train_loss') for of in last),
      _cell((of('gradients') for of in last), ',.0f'),
      _cell(of('seconds') for of in last),
    ]
  return _table('fit', 'Training and test', columns, rows)


def by_seed(comparison: Comparison) -> Table:
  """Returns the table of the final test metric of each seed."""
  metric, rows = comparison.metric, {}
  for method in comparison.methods:
    values = map(comparison.scores(method).get, comparison.seeds)
    rows[method] = [_cell([x], metric.spec, metric.scale) for x in values]
  columns = [(f'seed {seed}', '') for seed in comparison.seeds]
  return _table('seeds', 'By seed', columns, rows)


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
  escapes = str.maketrans(_LATEX)
  head, *rows = [
    ' & '.join(text.translate(escapes) for text in line)
    for line in texts(table)
  ]
  body = ''.join(f'  {row} \\\\\n' for row in rows)
  return (
    f'\\begin{{tabular}}{{l{"r" * len(table.columns)}}}\n  \\toprule\n'
    f'  {head} \\\\\n  \\midrule\n{body}  \\bottomrule\n\\end{{tabular}}\n'
  )


def for_terminal(table: Table) -> 'rich.table.Table':
  """Returns a table for a terminal, with the first columns."""
  from rich import box
  from rich import table as rich_table
  from rich.text import Text

  head, *lines = texts(table)
  found = rich_table.Table(
    box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
  )
  found.add_column(head[0], overflow='fold')
  for text in head[1:_IN_TERMINAL]:
    found.add_column(textwrap.fill(text, 10), justify='right', no_wrap=True)
  for name, line in zip(table.rows, lines, strict=True):
    shown = [formats.short_title(name), *line[1:_IN_TERMINAL]]
    found.add_row(*map(Text, shown))
  return found


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
        'diverged': run.diverged,
        **{key: (run.evaluations or [{}])[-1].get(key) for key in measured},
        'second_gradient_share': run.second_gradient_share,
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
  columns = dict.fromkeys(key for row in rows for key in row)
  writer = csv.DictWriter(file, list(columns), lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  return file.getvalue()
