"""Executes missing runs in parallel."""

import concurrent.futures
import dataclasses
import itertools
import multiprocessing
import os
import pathlib
import statistics
import threading
import time
from collections.abc import Iterator

from benchmarks.evidence import claims
from benchmarks.evidence.problems import PROBLEMS
from benchmarks.evidence.runs import Run, Runs
from benchmarks.evidence.training import Trainer
from benchmarks.evidence.variants import VARIANTS
from optax_sam.train.reports import machine

# Distinct from the seeds of the comparison.
_FIRST_TUNING_SEED = 1000


@dataclasses.dataclass(frozen=True)
class Plan:
  """The required runs.

  Attributes:
    output: directory of the runs.
    seeds: number of seeds of the comparison.
    tuning_seeds: number of seeds for each candidate setting.
  """

  output: pathlib.Path
  seeds: int
  tuning_seeds: int


class Workers:
  """Processes pinned to one core each; no further process for a count of 1."""

  def __init__(self, count: int):
    """Stores the count; processes start in `run`."""
    context = multiprocessing.get_context('spawn')
    self._pool = count > 1 and concurrent.futures.ProcessPoolExecutor(
      count,
      context,
      initializer=_on_one_core,
      initargs=(context.Value('i', 0),),
    )

  def run(self, tasks: list[tuple]) -> Iterator[str]:
    """Yields the messages of finished tasks."""
    if not self._pool:
      yield from itertools.starmap(complete, tasks)
      return
    futures = [self._pool.submit(complete, *task) for task in tasks]
    for future in concurrent.futures.as_completed(futures):
      yield future.result()

  def close(self) -> None:
    """Ends the processes without starting further tasks."""
    if self._pool:
      self._pool.shutdown(cancel_futures=True)


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


def complete(name: str, variant: str, plan: Plan) -> str:
  """Executes all missing runs of a variant."""
  start = time.perf_counter()
  runs = Runs(plan.output, name)
  found = VARIANTS[variant]
  fraction = 0.0
  if found.follows is not None:
    fractions = runs.by_seed(found.follows, 'second_gradients').values()
    fraction = round(statistics.fmean(fractions), 2)
  trainer = Trainer(name, found, fraction)
  measured = variant in claims.measured()
  versions = ' '.join(
    f'{package} {version}'
    for package, version in machine.versions().items()
    if package in ('jax', 'optax', 'optax-sam')
  )
  done = {
    (r.learning_rate, r.rho, r.seed, r.tuning)
    for r in runs.all
    if r.variant == variant
  }
  count = 0

  def run(rate: float, rho: float, seed: int, *, tuning: bool) -> None:
    nonlocal count
    if (rate, rho, seed, tuning) in done:
      return
    outcome = trainer.outcome(seed, rate, rho, measured=measured and not tuning)
    runs.add(Run(name, variant, rate, rho, seed, tuning, versions, outcome))
    count += 1

  for rate, rho in _choices(name, variant, runs):
    for seed in range(plan.tuning_seeds):
      run(rate, rho, _FIRST_TUNING_SEED + seed, tuning=True)
  rate, rho = runs.chosen(variant)
  for seed in range(plan.seeds):
    run(rate, rho, seed, tuning=False)
  accuracy = statistics.fmean(runs.by_seed(variant, 'test_accuracy').values())
  return (
    f'{name}: {found.title}: learning rate {rate:g}, rho {rho:g}, test '
    f'accuracy {accuracy:.2%}; {count} runs in '
    f'{time.perf_counter() - start:.0f} s'
  )


def _choices(name: str, variant: str, runs: Runs) -> list[tuple[float, float]]:
  """Returns the candidate learning rates and radii of a variant."""
  if not VARIANTS[variant].is_method:
    return [(rate, 0.0) for rate in PROBLEMS[name].learning_rates]
  return list(
    itertools.product(runs.learning_rates(variant), VARIANTS[variant].radii)
  )
