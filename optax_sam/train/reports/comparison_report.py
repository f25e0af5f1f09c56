"""The report of a comparison: HTML page, CSV, JSON lines, terminal."""

import pathlib
from typing import TYPE_CHECKING

import msgspec

from optax_sam.train.config import configs, output_dir
from optax_sam.train.reports import display, figures, page, tables, wording
from optax_sam.train.reports.formats import (
  count,
  duration,
  join,
  number,
  printable,
)
from optax_sam.train.reports.results import Comparison
from optax_sam.train.reports.summary import summarize

if TYPE_CHECKING:
  import rich.console


def write_report(comparison: Comparison, directory: pathlib.Path) -> None:
  """Writes report.html, results.csv and metrics.jsonl into a directory.

  All are rendered before the first is written; each is written atomically.

  Raises:
    ValueError: If the directory does not exist.
  """
  directory = pathlib.Path(directory)
  if not directory.is_dir():
    msg = f'directory: {str(directory)!r} is not a directory; create it first'
    raise ValueError(msg)
  files = {
    'results.csv': tables.results_csv(comparison).encode(),
    'metrics.jsonl': metrics_jsonl(comparison),
    'report.html': render_page(comparison).encode(),
  }
  for name, content in files.items():
    output_dir.write(directory / name, content)


def metrics_jsonl(comparison: Comparison) -> bytes:
  """Returns a line for every logged step, evaluation and landscape point.

  Each has `method`, `seed` and `kind`: 'log', 'validation', 'evaluation', or
  'landscape'. NaN and infinity, which JSON lacks, are null.
  """
  rows = [
    {'method': run.method, 'seed': run.seed, 'kind': kind, **row}
    | ({'step': int(row['step'])} if 'step' in row else {})
    for run in comparison.runs
    for kind, of_kind in (
      ('log', run.log),
      ('validation', run.validations),
      ('evaluation', run.evaluations),
      ('landscape', run.landscape),
    )
    for row in of_kind
  ]
  return msgspec.json.Encoder(enc_hook=float).encode_lines(rows)


def print_table(
  comparison: Comparison, console: 'rich.console.Console'
) -> None:
  """Prints headline, table and warnings."""
  from rich.text import Text

  rows = summarize(comparison)
  headline = printable(wording.headline(comparison, rows))
  console.print(Text(f'\n{headline}.', style='bold'))
  if rows:
    table = tables.results(comparison)
    console.print(tables.for_terminal(table, console.width))
  if any(row.difference.interval for row in rows):
    clear = f'{tables.HIGHER}{tables.LOWER} a clear difference'
    console.print(f'{clear}; {tables.OPEN} no clear difference.', style='dim')
  for sentence in wording.warnings(comparison, rows):
    console.print(Text(printable(sentence), style='yellow'))


def render_page(comparison: Comparison) -> str:
  """Renders the report of a comparison, or of a single run, as HTML."""
  summary, base = summarize(comparison), comparison.base
  methods, metric = comparison.methods, comparison.metric
  alone = len(comparison.runs) == 1 and methods == [base]
  results = tables.results(comparison)
  found = {'Score and cost': figures.scores(comparison, summary)}
  shown = [results, tables.fit(comparison), tables.by_seed(comparison)]
  if alone:
    found, shown = {}, shown[:2]
  worth = 100 / comparison.test_examples if comparison.test_examples else 0
  held_out = {run.method for run in comparison.runs if run.validations}
  return page.render(
    # Alone, the method has a colour; the base has that of the text.
    display.styles(methods, '' if alone else base),
    shown if methods else [],
    {
      **found,
      'Learning curves': figures.learning_curves(comparison),
      'Tuning': figures.sensitivity(comparison),
      'Sharpness and landscape': figures.solutions(comparison),
      'Course of training': figures.course(comparison),
    },
    comparison,
    downloads={
      'results.csv': tables.results_csv(comparison),
      'results.md': tables.markdown(results),
      'results.tex': tables.latex(results),
    },
    kind='One training run' if alone else 'Comparison of optimizers',
    title=f'{count(len(methods), "method")} on {wording.data(comparison)}',
    headline=wording.headline(comparison, summary),
    setup=wording.setup(comparison),
    warnings=wording.warnings(comparison, summary),
    glossary='glossary.html',
    base_label=display.title(base),
    radius=number(comparison.sharpness_radius),
    worth=f'{worth:.2g}' if metric.percent and worth else '',
    holding_out=join([display.title(name) for name in sorted(held_out)]),
    facts=_facts(comparison, alone=alone),
  )


def _facts(
  comparison: Comparison, *, alone: bool
) -> dict[str, dict[str, object]]:
  """Returns what the numbers depend on, under headings, without defaults."""
  config = configs.TrainConfig() if alone else configs.CompareConfig()
  defaults = configs.settings(config)
  return {
    'Run': {
      'duration': duration(comparison.seconds),
      'seeds': comparison.seeds,
      'equal for all methods': comparison.budget,
      'test examples': f'{comparison.test_examples:,}',
    },
    'Settings other than the defaults': {
      name.replace('_', ' '): value
      for name, value in comparison.settings.items()
      if name != 'methods' and value != defaults.get(name)
    },
    'Settings of the methods': {
      display.title(name): comparison.runs_of(name)[0].settings
      for name in comparison.methods
    },
  }
