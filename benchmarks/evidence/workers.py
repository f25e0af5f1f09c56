"""Executes missing runs in parallel."""

import concurrent.futures
import dataclasses
import multiprocessing
import os
import pathlib
import statistics
import threading
import time
from collections.abc import Iterator

from benchmarks.evidence.problems import PROBLEMS
from benchmarks.evidence.runs import Run, Runs
from benchmarks.evidence.training import Outcome, Trainer
from benchmarks.evidence.variants import BASE, VARIANTS
from optax_sam.train.comparison.search import Point, Score, search
from optax_sam.train.reports import machine

# Distinct from the seeds of the comparison.
TUNING_SEED = 1000
# Trials of the search of `optax-sam compare --tune`, for every variant.
TRIALS = 8
# Ratio of neighbours in the first grid; later ones are closer.
_RATIO = 4.0
# Further trials while the best value is the smallest or the largest one tried.
WIDER = 6

Task = tuple[str, str]  # problem and variant


@dataclasses.dataclass(frozen=True)
class Plan:
  """The required runs.

  Attributes:
    output: directory of the runs.
    seeds: number of seeds of the comparison.
    trials: number of trials of each variant.
  """

  output: pathlib.Path
  seeds: int
  trials: int = TRIALS


def needs(task: Task) -> list[Task]:
  """Returns the tasks whose results a task starts from.

  All searches start from the learning rate of the base optimizer. A variant may
  need how often another one perturbs.
  """
  problem, name = task
  others = (None if name == BASE else BASE, VARIANTS[name].follows)
  return [(problem, other) for other in others if other is not None]


def run(tasks: list[Task], plan: Plan, count: int) -> Iterator[str]:
  """Yields the messages of finished tasks, with those they need first."""
  waiting = list(tasks)
  finished = {task for task in waiting if is_finished(task, plan)}
  waiting = [task for task in waiting if task not in finished]
  if count == 1:
    while waiting:
      task = next(x for x in waiting if finished.issuperset(needs(x)))
      waiting.remove(task)
      yield complete(*task, plan)
      finished.add(task)
    return
  context = multiprocessing.get_context('spawn')
  pool = concurrent.futures.ProcessPoolExecutor(
    count,
    context,
    initializer=_on_one_core,
    initargs=(context.Value('i', 0),),
  )
  running: dict[concurrent.futures.Future, Task] = {}
  try:
    while waiting or running:
      for task in list(waiting):
        if len(running) < count and finished.issuperset(needs(task)):
          waiting.remove(task)
          running[pool.submit(complete, *task, plan)] = task
      done, _ = concurrent.futures.wait(
        running, return_when=concurrent.futures.FIRST_COMPLETED
      )
      for future in done:
        finished.add(running.pop(future))
        yield future.result()
  finally:
    pool.shutdown(cancel_futures=True)


def _on_one_core(counter) -> None:
  """Pins a worker; small networks don't benefit from a second core."""
  # When the command is killed, its workers must not continue writing.
  threading.Thread(target=_end_with_parent, daemon=True).start()
  with counter.get_lock():
    number = counter.value
    counter.value += 1
  if hasattr(os, 'sched_setaffinity'):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[number % len(cores)]})


def _end_with_parent() -> None:
  multiprocessing.parent_process().join()
  os._exit(1)


def is_finished(task: Task, plan: Plan) -> bool:
  """Whether all runs of a variant with test seeds exist."""
  problem, variant = task
  seeds = Runs(plan.output, problem).by_seed(variant, 'test_score')
  return set(range(plan.seeds)) <= set(seeds)


def seconds_left(task: Task, plan: Plan) -> float | None:
  """Estimates the time that a task still takes, from the runs there are.

  None if no run of its problem has a time.
  """
  variant = VARIANTS[task[1]]
  runs = Runs(plan.output, task[0])
  known = [
    run.outcome.seconds / (run.parts * run.outcome.gradients)
    for run in runs.all
    if run.outcome.seconds
  ]
  if is_finished(task, plan):
    return 0.0
  if not known:
    return None
  problem = PROBLEMS[task[0]]
  trials = TRIALS * problem.trial_length * problem.tuning_seeds
  cost = 1.3 if variant.gradients is None else variant.gradients(0.5)
  parts = sum(run.parts for run in runs.all if run.variant == task[1])
  whole = variant.parts * (plan.seeds + trials)
  return statistics.median(known) * cost * max(0.0, whole - parts)


def complete(name: str, variant: str, plan: Plan) -> str:
  """Executes all missing runs of a variant."""
  start = time.perf_counter()
  job = _Job(name, variant, plan)
  rate, rho = job.tune()
  for seed in range(plan.seeds):
    job.outcome(rate, rho, seed, job.variant.parts, tuning=False)
  score = job.runs.mean(variant, 'test_score')
  return (
    f'{name}: {job.variant.title}: learning rate {rate:g}, rho {rho:g}, test '
    f'score {score:.2f}; {job.count} runs in '
    f'{time.perf_counter() - start:.0f} s'
  )


class _Job:
  """The runs of one variant on one problem."""

  def __init__(self, name: str, variant: str, plan: Plan):
    self.name, self.key, self.plan = name, variant, plan
    self.variant = VARIANTS[variant]
    self.runs = Runs(plan.output, name)
    self.count = 0
    self._trainer: Trainer | None = None
    self._versions = ' '.join(
      f'{package} {version}'
      for package, version in machine.versions().items()
      if package in ('jax', 'optax', 'optax-sam')
    )

  def outcome(
    self, rate: float, rho: float, seed: int, parts: int, *, tuning: bool
  ) -> Outcome:
    """Returns the outcome of a run, from the file or from training."""
    settings = (self.key, rate, rho, seed, parts, tuning)
    for run in self.runs.all:
      if settings == (
        run.variant,
        run.learning_rate,
        run.rho,
        run.seed,
        run.parts,
        run.tuning,
      ):
        return run.outcome
    found = self.trainer.outcome(seed, rate, rho, parts, measured=not tuning)
    self.runs.add(Run(self.name, *settings, self._versions, found))
    self.count += 1
    return self.runs.all[-1].outcome

  @property
  def trainer(self) -> Trainer:
    """The compiled functions, made when a run is missing."""
    if self._trainer is None:
      fraction = 0.0
      if self.variant.follows is not None:
        followed = self.runs.mean(self.variant.follows, 'second_gradients')
        fraction = round(followed, 2)
      problem = PROBLEMS[self.name]
      self._trainer = Trainer(problem, self.variant, fraction)
    return self._trainer

  def start(self) -> tuple[float, ...]:
    """Returns the settings from which the search starts."""
    problem = PROBLEMS[self.name]
    if self.key == BASE:
      return (problem.learning_rate,)
    rate, _ = self.runs.chosen(BASE)
    if self.variant.factory is None:
      return (rate,)
    return rate, problem.rho * self.variant.radius

  def tune(self) -> tuple[float, float]:
    """Returns learning rate and radius with the best validation score.

    The search is that of `optax-sam compare --tune`. More trials follow while
    the best value of a setting is the smallest or the largest one tried.
    """
    start = self.start()
    parts = round(PROBLEMS[self.name].trial_length * self.variant.parts)

    def values(point: Point) -> tuple[float, float]:
      pairs = zip(start, point, strict=True)
      rate, *rho = (float(f'{x * _RATIO**power:.3g}') for x, power in pairs)
      return rate, rho[0] if rho else 0.0

    def measure(point: Point) -> Score:
      found = [
        self.outcome(*values(point), TUNING_SEED + seed, parts, tuning=True)
        for seed in range(PROBLEMS[self.name].tuning_seeds)
      ]
      scores, losses = (
        [getattr(outcome, name) for outcome in found]
        for name in ('validation_score', 'validation_loss')
      )
      return statistics.fmean(scores), -statistics.fmean(losses)

    best, score, tried = search(measure, len(start), self.plan.trials)
    for _ in range(WIDER):
      beyond = _beyond(best, tried)
      if beyond is None:
        break
      tried.append(beyond)
      other = measure(beyond)
      if other > score:
        best, score = beyond, other
    return values(best)


def _beyond(best: Point, tried: list[Point]) -> Point | None:
  """Returns a point beyond the best one where that is at the edge."""
  for axis, value in enumerate(best):
    values = [point[axis] for point in tried]
    for edge, step in ((min(values), -1.0), (max(values), 1.0)):
      if value == edge:
        return (*best[:axis], value + step, *best[axis + 1 :])
  return None
