"""Finished runs of fine-tuning, one line each, and their table."""

import csv
import pathlib
import platform
import statistics
from typing import Any

import flax
import jax
import optax

from benchmarks.fine_tuning.methods import METHODS
from benchmarks.fine_tuning.training import Outcome

SETTINGS = ('text', 'method', 'learning_rate', 'radius', 'seed', 'tuning')
COLUMNS = (*SETTINGS, *Outcome._fields, 'versions')
VERSIONS = (
  f'Python {platform.python_version()}, JAX {jax.__version__}, Flax '
  f'{flax.__version__}, Optax {optax.__version__}'
)


class Runs:
  """The runs in one file; those with other versions do not count."""

  def __init__(self, path: pathlib.Path):
    """Reads the existing runs."""
    self._path = path
    self.rows: list[dict[str, Any]] = []
    if path.exists():
      with path.open(newline='') as file:
        self.rows = [_parsed(row) for row in csv.DictReader(file)]

  def find(self, **wanted: Any) -> list[dict[str, Any]]:
    """Returns the runs with these settings and the present versions."""
    wanted['versions'] = VERSIONS
    matches = lambda row: all(row[name] == x for name, x in wanted.items())
    return [row for row in self.rows if matches(row)]

  def add(self, settings: dict[str, Any], outcome: Outcome) -> None:
    """Stores a finished run."""
    row = {**settings, **outcome._asdict(), 'versions': VERSIONS}
    self._path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not self._path.exists()
    with self._path.open('a', newline='') as file:
      writer = csv.DictWriter(file, COLUMNS, lineterminator='\n')
      if is_new:
        writer.writeheader()
      writer.writerow(row)
    self.rows.append(_parsed({name: str(x) for name, x in row.items()}))


def _parsed(row: dict[str, str]) -> dict[str, Any]:
  texts = ('text', 'method', 'versions')
  parsed = {
    name: x if name in texts else float(x)
    for name, x in row.items()
    if name != 'tuning'
  }
  return {**parsed, 'tuning': row['tuning'] == 'True'}


def table(runs: Runs, text: str) -> str:
  """Returns means and standard deviations over the seeds, as Markdown."""
  of = {
    name: runs.find(text=text, method=name, tuning=False) for name in METHODS
  }
  base = of['AdamW']
  lines = [
    '| method | radius | new text | first text | forgetting | work | state |',
    '|---|---|---|---|---|---|---|',
  ]
  before = [row['old_before'] for row in base]
  lines.append(f'| before fine-tuning | | | {_mean(before)} | | | |')
  for name, rows in of.items():
    if not rows:
      continue
    forgetting = [row['old'] - row['old_before'] for row in rows]
    cost = rows[0]['operations'] / base[0]['operations']
    radius = f'{rows[0]["radius"]:g}' if METHODS[name].radii != (0.0,) else ''
    lines.append(
      f'| {name} | {radius} | {_mean([row["new"] for row in rows])} | '
      f'{_mean([row["old"] for row in rows])} | {_mean(forgetting)} | '
      f'{cost:.2f} | {int(rows[0]["state"])} |'
    )
  return '\n'.join(lines) + '\n'


def _mean(values: list[float]) -> str:
  deviation = statistics.stdev(values) if len(values) > 1 else 0.0
  return f'{statistics.mean(values):.3f} ± {deviation:.3f}'
