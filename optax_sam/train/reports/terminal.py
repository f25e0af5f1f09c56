"""The results of a comparison as a table for a terminal."""

from typing import TYPE_CHECKING

from optax_sam.train.reports import formats, wording
from optax_sam.train.reports.display import title
from optax_sam.train.reports.results import Comparison, Metric
from optax_sam.train.reports.summary import Summary, summarize

if TYPE_CHECKING:
  import rich.console
  from rich.text import Text

NARROW, EXTRA_WIDTH = 65, 11
EXTRA = (
  ('sam_sharpness', 'SAM\nsharpness'),
  ('top_eigenvalue', 'top eigen-\nvalue'),
)
HIGHER = '\N{BLACK UP-POINTING TRIANGLE}'
LOWER = '\N{BLACK DOWN-POINTING TRIANGLE}'
OPEN = '~'


def print_table(
  comparison: Comparison, console: 'rich.console.Console'
) -> None:
  """Prints headline, table, findings and warnings.

  Args:
    comparison: The measured comparison.
    console: The console.
  """
  from rich import box
  from rich.table import Table
  from rich.text import Text

  rows = summarize(comparison)
  metric = comparison.metric
  points = ', points' if metric.percent else ''
  columns = (
    f'test\n{formats.name_of(metric)}{", %" if metric.percent else ""}',
    f'difference\n(interval){points}',
    'perturbed\ngrad. %',
    'step\ntime',
  )
  # The width that remains for optional columns.
  widest = max((len(title(name)) for name in comparison.methods), default=0)
  room = console.width - NARROW - widest
  extra = EXTRA[: max(0, room // EXTRA_WIDTH)]
  table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
  table.add_column('method', overflow='fold')
  for name in (*columns, *(header for _, header in extra)):
    table.add_column(name, justify='right', no_wrap=True)
  for row in rows:
    cells = formats.cells(row, metric)
    score = cells['score']
    if cells['deviation']:
      score += f' ± {cells["deviation"]}'
    shown = [
      Text(title(row.method), style='bold' if row.is_base else ''),
      Text(score),
      _difference(row, cells, metric),
      Text(cells['second_gradients']),
      Text(cells['time']),
    ]
    shown += [Text(cells[key]) for key, _ in extra]
    table.add_row(*shown)
  console.print()
  console.print(Text(wording.headline(comparison, rows) + '.', style='bold'))
  if rows:
    console.print(table)
  if any(row.difference.interval for row in rows):
    console.print(
      Text(
        f'{HIGHER}{LOWER} a clear difference; {OPEN} no clear difference.',
        style='dim',
      )
    )
  for sentence in wording.findings(comparison, rows):
    console.print(Text(sentence))
  for sentence in wording.warnings(comparison, rows):
    console.print(Text(sentence, style='yellow'))


def _difference(row: Summary, cells: dict[str, str], metric: Metric) -> 'Text':
  from rich.text import Text

  difference = row.difference
  if difference.interval is None:
    return Text(cells['difference'], style='dim')
  text = f'{cells["difference"]} ({cells["interval"]})'
  if not difference.significant:
    return Text(f'{OPEN} {text}', style='dim')
  higher = (difference.mean or 0.0) > 0
  sign = HIGHER if higher else LOWER
  good = formats.is_better(difference, metric)
  style = 'bold green' if good else 'bold red'
  return Text(f'{sign} {text}', style=style)
