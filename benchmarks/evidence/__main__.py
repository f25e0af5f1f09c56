"""Evidence for the papers' claims: `python -m benchmarks.evidence 1 3`.

The learning rate of the base optimizer is chosen by validation accuracy. At
that rate the radius of each method is chosen in the same way, from the same
number of values and seeds. Then all are compared on the test examples, paired
over other seeds. Finished runs are not repeated, so an interrupted command
resumes. The page includes all finished runs.
"""

import contextlib
import dataclasses
import itertools
import pathlib
import sys
from typing import Annotated

import tyro

from benchmarks.evidence import claims, page, picture, workers
from benchmarks.evidence.problems import PROBLEMS
from benchmarks.evidence.runs import Runs
from benchmarks.evidence.variants import BASE, VARIANTS

_ROOT = pathlib.Path(__file__).parents[2]
_RESULTS = _ROOT / 'benchmarks' / 'results' / 'evidence'
_PAGE, _PICTURE = 'evidence.md', 'evidence.png'


@dataclasses.dataclass(frozen=True)
class Options:
  """Options of the command."""

  claims: Annotated[tuple[int, ...], tyro.conf.Positional] = tuple(
    claims.CLAIMS
  )
  """Numbers of the claims; all without one."""
  problems: tuple[str, ...] = tuple(PROBLEMS)
  """Names of the problems."""
  seeds: int = 12
  """Number of seeds of the comparison."""
  tuning_seeds: int = 3
  """Number of seeds for each candidate setting."""
  workers: int = 2
  """Number of processes, each on one core."""
  output: pathlib.Path = _RESULTS
  """Directory of the runs, of evidence.md and of evidence.png."""


def main(options: Options) -> None:
  """Runs missing runs, variant by variant, then writes page and plot."""
  _check(options)
  tasks = [
    (problem, variant)
    for problem in options.problems
    for variant in claims.variants_of(
      [n for n in options.claims if problem in claims.problems_of(n)]
    )
  ]
  if not tasks:
    sys.exit('none of these claims is tested on these problems')
  # Some variants need the fraction of another one, all need the rate.
  stages = itertools.groupby(sorted(tasks, key=_stage), key=_stage)
  plan = workers.Plan(options.output, options.seeds, options.tuning_seeds)
  with contextlib.closing(workers.Workers(options.workers)) as pool:
    for _, stage in stages:
      for said in pool.run([(*task, plan) for task in stage]):
        print(said, flush=True)
  runs = {name: Runs(options.output, name) for name in PROBLEMS}
  runs = {name: found for name, found in runs.items() if found.all}
  for problem in runs.values():
    problem.sort()
  picture.draw(options.output / _PICTURE, runs)
  page.write(options.output / _PAGE, runs, _PICTURE)
  print(f'Page: {options.output / _PAGE}')


def _check(options: Options) -> None:
  for given, known in (
    (options.claims, claims.CLAIMS),
    (options.problems, PROBLEMS),
  ):
    unknown = [str(name) for name in given if name not in known]
    if unknown:
      sys.exit(
        f'{", ".join(unknown)} is unknown; choose among '
        f'{", ".join(map(str, known))}'
      )
  for name in ('seeds', 'tuning_seeds', 'workers'):
    if getattr(options, name) < 1:
      sys.exit(
        f'--{name.replace("_", "-")} must be at least 1, not '
        f'{getattr(options, name)}'
      )


def _stage(task: tuple[str, str]) -> int:
  if task[1] == BASE:
    return 0
  return 1 if VARIANTS[task[1]].follows is None else 2


if __name__ == '__main__':
  main(tyro.cli(Options))
