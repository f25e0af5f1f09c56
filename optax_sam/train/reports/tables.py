"""Tables of a comparison: for the page, CSV, Markdown and LaTeX."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from optax_sam.train.reports import formats
from optax_sam.train.reports.display import Style
from optax_sam.train.reports.results import Comparison
from optax_sam.train.reports.score_figures import spent
from optax_sam.train.reports.summary import Summary, mean

# Characters with a meaning in LaTeX, and what replaces them.
_LATEX = {
  '\\': r'\textbackslash{}',
  **{character: f'\\{character}' for character in '&%$#_{}'},
  '~': r'\textasciitilde{}',
  '^': r'\textasciicircum{}',
  '±': r'$\pm$',
  formats.TIMES: r'$\times$',
  formats.MINUS: r'$-$',
  formats.MISSING: '--',
}


def results_csv(comparison: Comparison) -> str:
  """Returns a CSV table with a row per run, in full precision.

  Args:
    comparison: The measured comparison.

  Returns:
    Comma-separated values; missing numbers are empty.
  """
  name = comparison.metric.name
  measured = [f'test_{name}', 'test_loss', f'train_{name}', 'train_loss']
  rows = [
    {
      'method': run.method,
      'seed': run.seed,
      'steps': run.steps,
      'complete': comparison.is_complete(run),
      'diverged': run.diverged,
      **{
        key: run.evaluations[-1][key]
        for key in measured
        if run.evaluations and key in run.evaluations[-1]
      },
      'second_gradient_share': run.second_gradient_share,
      **run.sharpness,
      'seconds': run.seconds,
      **{f'setting_{key}': value for key, value in run.settings.items()},
    }
    for run in comparison.runs
  ]
  columns = ['method', 'seed', 'steps', 'complete', 'diverged', *measured]
  columns += ['second_gradient_share', 'sam_sharpness', 'top_eigenvalue']
  columns += ['seconds']
  # Dicts are ordered: common columns first, settings last.
  columns = list(dict.fromkeys(columns + [key for row in rows for key in row]))
  buffer = io.StringIO()
  writer = csv.DictWriter(buffer, columns, restval='', lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  return buffer.getvalue()


def fit(
  comparison: Comparison, styles: Mapping[str, Style]
) -> list[dict[str, Any]]:
  """Returns the values on training and test examples, a row per method.

  Args:
    comparison: The measured comparison.
    styles: Style by method.

  Returns:
    Rows of `method` and `cells`, each a text and its number.
  """
  metric = comparison.metric
  rows = []
  for method in styles:
    done = [
      run for run in comparison.runs_of(method) if comparison.is_complete(run)
    ]
    test = mean(run.last(f'test_{metric.name}') for run in done)
    train = mean(run.last(f'train_{metric.name}') for run in done)
    gap = None if test is None or train is None else train - test
    losses = [
      mean(run.last(name) for run in done)
      for name in ('test_loss', 'train_loss')
    ]
    gradients, seconds = spent(comparison, method)
    cells = [
      (formats.score(test, metric), test),
      (formats.score(train, metric), train),
      (formats.MISSING if gap is None else formats.gain(gap, metric), gap),
      *((formats.number(loss), loss) for loss in losses),
      (
        formats.MISSING if gradients is None else f'{gradients:,.0f}',
        gradients,
      ),
      (formats.number(seconds), seconds),
    ]
    rows.append({'method': method, 'cells': cells})
  return rows


def by_seed(
  comparison: Comparison, styles: Mapping[str, Style]
) -> list[dict[str, Any]]:
  """Returns the final test metric of each seed, a row per method.

  Args:
    comparison: The measured comparison.
    styles: Style by method.

  Returns:
    Rows of `method` and `cells`, each a text and its number.
  """
  rows = []
  for method in styles:
    scores = comparison.scores(method)
    cells = [
      (formats.score(scores.get(seed), comparison.metric), scores.get(seed))
      for seed in comparison.seeds
    ]
    rows.append({'method': method, 'cells': cells})
  return rows


def markdown(
  comparison: Comparison,
  summary: Sequence[Summary],
  styles: Mapping[str, Style],
) -> str:
  """Returns the table of results in Markdown."""
  head, *rows = _texts(comparison, summary, styles)
  lines = [head, ['---', *['---:'] * (len(head) - 1)], *rows]
  return ''.join(
    '| '
    + ' | '.join(re.sub(r'([|\\`*_<\[])', r'\\\1', x) for x in line)
    + ' |\n'
    for line in lines
  )


def latex(
  comparison: Comparison,
  summary: Sequence[Summary],
  styles: Mapping[str, Style],
) -> str:
  """Returns the table of results for LaTeX, with rules of booktabs."""
  head, *rows = [
    ' & '.join(''.join(_LATEX.get(c, c) for c in text) for text in line)
    for line in _texts(comparison, summary, styles)
  ]
  columns = 'l' + 'r' * head.count(' & ')
  body = ''.join(f'  {row} \\\\\n' for row in rows)
  return (
    f'\\begin{{tabular}}{{{columns}}}\n  \\toprule\n  {head} \\\\\n'
    f'  \\midrule\n{body}  \\bottomrule\n\\end{{tabular}}\n'
  )


def _texts(
  comparison: Comparison,
  summary: Sequence[Summary],
  styles: Mapping[str, Style],
) -> list[list[str]]:
  unit = ' (%)' if comparison.metric.percent else ''
  head = ['Method', f'Test {formats.name_of(comparison.metric)}{unit}']
  head += ['Difference (95% interval)', 'Perturbed gradients (%)']
  head += ['Time per step', 'SAM sharpness', 'Top eigenvalue']
  lines = [head]
  for row in summary:
    cells = formats.cells(row, comparison.metric)
    score, difference = cells['score'], cells['difference']
    score += f' ± {cells["deviation"]}' if cells['deviation'] else ''
    difference += f' ({cells["interval"]})' if cells['interval'] else ''
    keys = ('second_gradients', 'time', 'sam_sharpness', 'top_eigenvalue')
    label = styles[row.method].label
    lines.append([label, score, difference, *(cells[key] for key in keys)])
  return lines
