"""Evidence for the papers' claims: `python -m benchmarks.evidence`.

Learning rate and radius of every variant are tuned on validation examples, with
one number of trials. Then all are compared on the test examples, paired over
other seeds. Finished runs are not repeated, so an interrupted command resumes.
`--list` names every run, its state and its command.
"""

import dataclasses
import os
import pathlib
import sys
from typing import Annotated

import jax
import tyro

from benchmarks.evidence import (
  analysis,
  claims,
  measurement,
  observations,
  page,
  workers,
)
from benchmarks.evidence.problems import PROBLEMS
from benchmarks.evidence.runs import Runs
from benchmarks.evidence.variants import VARIANTS

_ROOT = pathlib.Path(__file__).parents[2]
RESULTS = _ROOT / 'benchmarks' / 'results' / 'evidence'


def _cores() -> int:
  if jax.default_backend() != 'cpu':
    return 1
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


@dataclasses.dataclass(frozen=True)
class Options:
  """Options of the command."""

  claims: Annotated[tuple[int, ...], tyro.conf.Positional] = tuple(
    claims.CLAIMS
  )
  """Numbers of the claims; all without one."""
  problems: tuple[str, ...] = tuple(PROBLEMS)
  """Names of the problems."""
  variants: tuple[str, ...] = tuple(VARIANTS)
  """Names of the variants."""
  seeds: int = 5
  """Number of seeds of the comparison."""
  workers: int = dataclasses.field(default_factory=_cores)
  """Number of processes, each on one core; 1 on a GPU."""
  output: pathlib.Path = RESULTS
  """Directory of the runs, the page and the pictures."""
  list: bool = False
  """Whether to print the runs and their states instead."""
  page: bool = False
  """Whether to write the page of the existing runs instead."""


def main(options: Options) -> None:
  """Runs missing runs, then writes page and pictures."""
  _check(options)
  plan = workers.Plan(options.output, options.seeds)
  tasks = claims.tasks(options.claims, options.problems, options.variants)
  if not tasks:
    sys.exit('none of these claims is tested on these problems')
  if options.list:
    for task in tasks:
      print(_state(task, plan))
  elif not options.page:
    for message in workers.run(tasks, plan, options.workers):
      print(f'{message}. {_left(tasks, plan, options.workers)}', flush=True)
  if options.list:
    print(_left(tasks, plan, options.workers))
    return
  if not options.page:
    _observe(options.output)
  print(f'Page: {page.write(options.output, _recorded(options))}')
  _print_verdicts(options)


def _observe(directory: pathlib.Path) -> None:
  """Records the observations, if all variants ran on all problems."""
  every = analysis.load(directory)
  if not measurement.missing(every):
    for name in every:
      observations.record(directory, name)


def _recorded(options: Options) -> pathlib.Path | None:
  """Returns the directory of the records, if the output is another one."""
  return None if options.output.resolve() == RESULTS else RESULTS


def _print_verdicts(options: Options) -> None:
  """Prints the verdicts, of another directory with the recorded ones."""
  here = analysis.load(options.output, recorded=_recorded(options))
  recorded = analysis.load(RESULTS) if _recorded(options) else None
  for number in options.claims:
    claim = claims.CLAIMS[number]
    line = f'Claim {number}: {analysis.verdict(analysis.results(here, claim))}'
    if recorded:
      word = analysis.verdict(analysis.results(recorded, claim))
      line += f' (recorded: {word})'
    print(line)
  if recorded:
    print(_compared(options))


def _compared(options: Options) -> str:
  """Says how many runs with test seeds have the scores of the records."""
  here, recorded = {}, {}
  for directory, found in ((options.output, here), (RESULTS, recorded)):
    for problem, variant in claims.tasks(
      options.claims, options.problems, options.variants
    ):
      for run in Runs(directory, problem).find(variant, tuning=False):
        score = run.outcome.validation_score, run.outcome.test_score
        found[problem, variant, run.seed] = score
  equal = sum(recorded.get(key) == score for key, score in here.items())
  return f'{equal} of {len(here)} runs have exactly the recorded scores.'


def _state(task: workers.Task, plan: workers.Plan) -> str:
  problem, variant = task
  runs = Runs(plan.output, problem)
  trials, seeds = (len(runs.find(variant, tuning=x)) for x in (True, False))
  state = 'finished' if workers.is_finished(task, plan) else 'missing'
  if state == 'missing' and trials:
    state = 'begun'
  return (
    f'{state:8} {problem:13} {variant:24} {trials:2} trials, {seeds} seeds  '
    f'python -m benchmarks.evidence --problems {problem} --variants {variant}'
  )


def _left(tasks: list[workers.Task], plan: workers.Plan, count: int) -> str:
  left = [workers.seconds_left(task, plan) for task in tasks]
  open_tasks = [x for x in left if x != 0.0]
  known = [x for x in open_tasks if x is not None]
  minutes = sum(known) / 60 / count
  unknown = len(open_tasks) - len(known)
  more = f', and {unknown} of unknown length' if unknown else ''
  return (
    f'{len(open_tasks)} of {len(tasks)} left: about {minutes:.0f} minutes{more}'
  )


def _check(options: Options) -> None:
  for given, known in (
    (options.claims, claims.CLAIMS),
    (options.problems, PROBLEMS),
    (options.variants, VARIANTS),
  ):
    unknown = [str(name) for name in given if name not in known]
    if unknown:
      sys.exit(
        f'{", ".join(unknown)} is unknown; choose among '
        f'{", ".join(map(str, known))}'
      )
  for name in ('seeds', 'workers'):
    if getattr(options, name) < 1:
      sys.exit(f'--{name} must be at least 1, not {getattr(options, name)}')


if __name__ == '__main__':
  main(tyro.cli(Options))
