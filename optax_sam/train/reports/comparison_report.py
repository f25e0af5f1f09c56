"""The files of a comparison: HTML page, CSV and JSON lines."""

import json
import math
import pathlib

from optax_sam.train.reports.comparison_page import render_page
from optax_sam.train.reports.results import Comparison
from optax_sam.train.reports.tables import results_csv
from optax_sam.train.reports.terminal import print_table

__all__ = ['metrics_jsonl', 'print_table', 'results_csv', 'write_report']


def write_report(comparison: Comparison, directory: pathlib.Path) -> None:
  """Writes report.html, results.csv and metrics.jsonl into a directory.

  All three are rendered before the first is written; each is written
  atomically.

  Args:
    comparison: The measured comparison.
    directory: An existing directory; files of these names are replaced.

  Raises:
    ValueError: If the directory does not exist.
  """
  directory = pathlib.Path(directory)
  if not directory.is_dir():
    message = (
      f'directory: {str(directory)!r} is not a directory; create it first'
    )
    raise ValueError(message)
  texts = {
    'results.csv': results_csv(comparison),
    'metrics.jsonl': metrics_jsonl(comparison),
    'report.html': render_page(comparison),
  }
  for name, text in texts.items():
    unfinished = directory / f'.{name}.unfinished'
    try:
      unfinished.write_text(text, encoding='utf-8', newline='')
      unfinished.replace(directory / name)
    finally:
      unfinished.unlink(missing_ok=True)


def metrics_jsonl(comparison: Comparison) -> str:
  """Returns a line for every logged step, evaluation and landscape point.

  Args:
    comparison: The measured comparison.

  Returns:
    Lines of JSON with `method`, `seed` and `kind`: 'log', 'validation',
    'evaluation', or 'landscape' with `position` and `loss`. NaN and infinity,
    which JSON lacks, are null.
  """
  lines = []
  for run in comparison.runs:
    for kind, rows in (
      ('log', run.log),
      ('validation', run.validations),
      ('evaluation', run.evaluations),
      ('landscape', run.landscape),
    ):
      for row in rows:
        head = {'method': run.method, 'seed': run.seed, 'kind': kind}
        line = head | {name: _plain(value) for name, value in row.items()}
        if 'step' in line:  # read back from JSON it is 1.0
          line['step'] = int(row['step'])
        lines.append(json.dumps(line, allow_nan=False) + '\n')
  return ''.join(lines)


def _plain(value: float) -> float | int | bool | None:
  if isinstance(value, bool | int):
    return value
  value = float(value)
  return value if math.isfinite(value) else None
