"""What Sparse SAM and AE-SAM start from, observed in one run of SAM each."""

import csv
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

import optax_sam
from benchmarks.evidence import problems
from benchmarks.evidence.problems import PARTS, PROBLEMS
from benchmarks.evidence.runs import Runs
from benchmarks.evidence.training import Trainer
from benchmarks.evidence.variants import SAM, VARIANTS

_SEED = 0
_PERCENTILES = (1, 5, *range(10, 100, 10), 95, 99, 99.9, 100)
# Weight of the past in the mean and variance of AE-SAM.
_DECAY = 0.9
FILE = 'observations.csv'
_COLUMNS = ('problem', 'kind', 'step', 'place', 'value')


def record(directory: pathlib.Path, name: str) -> None:
  """Trains SAM once with its chosen settings, and records what happens.

  Rows 'difference' have percentiles, over the parameters, of the absolute
  difference between SAM's and SGD's gradient, relative to its root mean square.
  Rows 'norm' have the squared norm of the gradient at every step.
  """
  path = directory / FILE
  rows = _read(path)
  if any(row['problem'] == name for row in rows):
    return
  problem = PROBLEMS[name]
  rate, rho = Runs(directory, name).chosen(SAM)
  trainer = Trainer(problem, VARIANTS[SAM], 0.0)
  settings = trainer.settings(_SEED, rate, rho, problem.steps)
  train, _ = problems.draw(problem, _SEED)
  order = problems.order(problem, _SEED, problem.steps)
  carry = jax.jit(trainer.start)(settings, train['inputs'][:1])
  points = jnp.asarray(_PERCENTILES)

  def step(carry: Any, batch: Any) -> Any:
    new, gradient, value_fn = trainer.step(carry, batch, settings)
    square = optax_sam.metrics(new[2])['ascent_norm'] ** 2
    method, params = optax_sam.sam(rho), carry[0]
    perturbed, _ = method.update(
      gradient, method.init(params), params, value_fn=value_fn
    )
    apart = jnp.concatenate(
      [
        jnp.abs(x - y).ravel()
        for x, y in zip(
          jax.tree.leaves(gradient), jax.tree.leaves(perturbed), strict=True
        )
      ]
    )
    size = jnp.sqrt(jnp.mean(apart**2))
    return new, square, jnp.percentile(apart, points) / size

  compiled = jax.jit(step)
  for number, chosen in enumerate(order):
    batch = {key: values[chosen] for key, values in train.items()}
    carry, square, differences = compiled(carry, batch)
    rows.append(_row(name, 'norm', number, 0, float(square)))
    if number % (problem.steps // PARTS) == 0:
      rows += [
        _row(name, 'difference', number, place, float(value))
        for place, value in zip(_PERCENTILES, differences, strict=True)
      ]
  temporary = path.with_suffix('.partial')
  with temporary.open('w', encoding='utf-8', newline='') as file:
    writer = csv.DictWriter(file, _COLUMNS, lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
  temporary.replace(path)


def _row(
  problem: str, kind: str, step: int, place: float, value: float
) -> dict[str, Any]:
  values = (problem, kind, step, place, f'{value:.6g}')
  return dict(zip(_COLUMNS, values, strict=True))


def _read(path: pathlib.Path) -> list[dict[str, Any]]:
  if not path.exists():
    return []
  with path.open(encoding='utf-8', newline='') as file:
    return list(csv.DictReader(file))


def _of(directory: pathlib.Path, kind: str) -> dict[str, list[dict[str, Any]]]:
  found: dict[str, list[dict[str, Any]]] = {}
  for row in _read(directory / FILE):
    if row['kind'] == kind:
      found.setdefault(row['problem'], []).append(row)
  return found


def legend(axes: Any) -> None:
  """Draws a legend, if anything is drawn."""
  if axes.get_legend_handles_labels()[0]:
    axes.legend(fontsize=6.5, frameon=False)


def draw_differences(axes: Any, directory: pathlib.Path) -> None:
  """Draws the distribution of the differences, at the start and at the end."""
  for color, (name, rows) in enumerate(_of(directory, 'difference').items()):
    steps = sorted({int(row['step']) for row in rows})
    for step, style in ((steps[0], ':'), (steps[-1], '-')):
      line = [
        (float(row['place']), float(row['value']))
        for row in rows
        if int(row['step']) == step
      ]
      label = f'{PROBLEMS[name].title}' if style == '-' else None
      x, y = zip(*line, strict=True)
      axes.plot(x, y, style, color=f'C{color}', label=label)
  axes.set_yscale('log')
  axes.set_xlabel('percent of the parameters', fontsize=8)
  axes.set_ylabel('difference / root mean square', fontsize=8)
  axes.set_title(
    "Entries of SAM's gradient minus SGD's (dotted: first step)", fontsize=9
  )
  legend(axes)


def scores(rows: list[dict[str, Any]]) -> np.ndarray:
  """Returns how many deviations each squared norm is above AE-SAM's mean."""
  mean, variance, found = 0.0, 1e-10, []
  for row in rows:
    square = float(row['value'])
    mean = _DECAY * mean + (1 - _DECAY) * square
    variance = _DECAY * variance + (1 - _DECAY) * (square - mean) ** 2
    found.append((square - mean) / np.sqrt(variance))
  return np.asarray(found[20:])  # the averages start at zero


def draw_norms(axes: Any, directory: pathlib.Path) -> None:
  """Draws quantiles of the squared norms against those of a normal law."""
  for name, rows in _of(directory, 'norm').items():
    values = np.sort(scores(rows))
    places = (np.arange(len(values)) + 0.5) / len(values)
    axes.plot(
      stats.norm.ppf(places), values, '.', ms=2, label=PROBLEMS[name].title
    )
  axes.plot([-3, 3], [-3, 3], color='0.5', linewidth=0.8)
  axes.set_xlabel('quantile of the normal law', fontsize=8)
  axes.set_ylabel('(squared norm - mean) / deviation', fontsize=8)
  axes.set_title(
    'Squared gradient norms, standardized as by AE-SAM', fontsize=9
  )
  legend(axes)
