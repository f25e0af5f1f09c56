"""Trains, measures and times the runs of a comparison."""

import dataclasses
import datetime as dt
import functools
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from optax_sam.sharpness.mean_loss import MeanLoss
from optax_sam.train.commands import progress
from optax_sam.train.comparison import (
  budget,
  plan,
  store,
  surroundings,
  threads,
  timing,
)
from optax_sam.train.config import configs
from optax_sam.train.loop import evaluation, objectives, task
from optax_sam.train.loop.trainer import Progress, Trainer
from optax_sam.train.reports import machine, results


def measure(
  config: configs.CompareConfig,
  settings: dict[str, dict[str, Any]],
  reporter: progress.Reporter,
  command: str,
  problem: task.Task,
  stored: store.Store,
) -> results.Comparison:
  """Trains and times what is missing, until the end or Ctrl-C."""
  start = time.perf_counter()
  description = store.describe(problem)
  former = stored.record
  if former is not None:
    stored.check('data and model', former.problem, description)
  planned, problem = plan.make(config, problem, settings, reporter, stored)
  for (name, _), run in stored.runs.items():
    if name in planned.settings:
      stored.check(f'settings of {name}', run.settings, planned.settings[name])
  comparison = _empty(config, problem, planned, command)
  if former is not None:
    kept = ('timings', 'planes', 'spectra', 'started', 'seconds')
    earlier = {name: getattr(former.comparison, name) for name in kept}
    command = _commands(former.comparison, comparison)
    comparison = dataclasses.replace(comparison, **earlier, command=command)
  spent = comparison.seconds
  found = _Runs(config, problem, planned, reporter, stored)

  def save(**changes: Any) -> None:
    nonlocal comparison
    seconds = spent + time.perf_counter() - start
    comparison = dataclasses.replace(comparison, seconds=seconds, **changes)
    stored.save(store.Record(planned, description, comparison))

  save()
  try:
    found.train(comparison.timings, lambda made: save(timings=made))
    planes, spectra = found.surroundings(stored.comparison())
    save(planes=planes, spectra=spectra, interrupted=False)
  except KeyboardInterrupt:
    if not stored.runs:
      raise
    reporter.line(f'Interrupted; finished runs: {len(stored.runs)}.')
    save(interrupted=True)
  return stored.comparison()


def _empty(
  config: configs.CompareConfig,
  problem: task.Task,
  planned: store.Plan,
  command: str,
) -> results.Comparison:
  """Returns a comparison that is interrupted before its first run."""
  return results.Comparison(
    settings=configs.settings(config)
    | {
      'methods': list(planned.settings),
      'learning_rate': configs.learning_rate(config),
      'weight_decay': configs.weight_decay(config),
    },
    command=command,
    base=config.base,
    runs=[],
    timings=[],
    versions=machine.versions(),
    machine=machine.describe(),
    started=dt.datetime.now().astimezone().isoformat(timespec='seconds'),
    seconds=0.0,
    interrupted=True,
    total_steps=config.steps,
    test_examples=problem.inputs.test_examples,
    sharpness_radius=config.sharpness_radius,
    metric=problem.objective.measured,
    budget=config.budget,
  )


def _commands(former: results.Comparison, now: results.Comparison) -> str:
  """Returns the commands that lead to a comparison that was extended."""
  names = ('methods', 'seeds')
  if all(former.settings.get(x) == now.settings.get(x) for x in names):
    return former.command
  return f'{former.command} && {now.command}'


def _base_and_best(comparison: results.Comparison) -> list[str]:
  """Returns the base optimizer and the method with the best mean metric."""
  sign = 1 if comparison.metric.higher_is_better else -1
  means = {
    name: sign * float(np.mean(list(scores.values())))
    for name in comparison.methods
    if name != comparison.base and (scores := comparison.scores(name))
  }
  return [comparison.base, *sorted(means, key=means.__getitem__)[-1:]]


class _Runs:
  """The runs of a comparison, several at a time."""

  def __init__(
    self,
    config: configs.CompareConfig,
    problem: task.Task,
    planned: store.Plan,
    reporter: progress.Reporter,
    stored: store.Store,
  ) -> None:
    self.config, self.problem = config, problem
    self.reporter, self.stored = reporter, stored
    self.trainers = {
      name: Trainer(
        dataclasses.replace(config, steps=planned.steps[name]),
        problem,
        name,
        own,
      )
      for name, own in planned.settings.items()
    }
    # Of seed 0: solutions, and states to time steps from.
    self.solutions: dict[str, Any] = {}
    self.starts: dict[str, list[Progress]] = {}
    self.stop = threading.Event()

  def train(
    self,
    timings: list[results.Timing],
    save: Callable[[list[results.Timing]], None],
  ) -> None:
    """Trains what is missing; times the steps after the first seed."""
    missing = [
      (seed, name)
      for seed in range(self.config.seeds)
      for name in self.trainers
      if (name, seed) not in self.stored.runs
    ]
    untimed = set(self.trainers) - {one.method for one in timings}
    if not self.config.timing_rounds:
      untimed.clear()
    self.starts = {name: [] for name in untimed}
    self._compile({name for _, name in missing} | untimed)
    total = sum(self.trainers[name].config.steps for _, name in missing)
    with self.reporter.phase('Training', total) as phase:
      for first in (True, False):
        self._train_all(
          [run for run in missing if (run[0] == 0) == first], phase
        )
        # States that are not there are made at the end.
        if untimed and (all(self.starts.values()) or not first):
          self._replay({name for name in untimed if not self.starts[name]})
          save(self._time(timings))
          untimed.clear()

  def surroundings(
    self, found: results.Comparison
  ) -> tuple[dict[str, surroundings.Rows], dict[str, surroundings.Rows]]:
    """Returns planes and spectra of the base optimizer and the best method."""
    names: list[str] = []
    for name in _base_and_best(found):
      run = self.stored.runs.get((name, 0))
      if run is not None and not run.stopped:
        names.append(name)
    planes, spectra = dict(found.planes), dict(found.spectra)
    new = [name for name in names if name not in planes or name not in spectra]
    self._replay(set(new) - self.solutions.keys())
    if new:
      with self.reporter.phase('Measuring', len(new)) as phase:
        for name in new:
          params, statistics = self.solutions[name]
          args = (statistics, self._sharpness_batch())
          given = self.problem.evaluation_loss, params, args
          planes[name] = surroundings.plane(*given)
          spectra[name] = surroundings.spectrum(*given)
          phase.advance()
    return {x: planes[x] for x in names}, {x: spectra[x] for x in names}

  def _compile(self, names: set[str]) -> None:
    """Compiles all steps, and what is measured, once for all methods."""
    trainers = {x: one for x, one in self.trainers.items() if x in names}
    if not trainers:
      return
    jobs: list[Callable[[], Any]] = [one.compile for one in trainers.values()]
    jobs.append(functools.partial(self._warm_up, next(iter(trainers.values()))))
    with self.reporter.phase('Compiling', len(jobs)) as phase:
      threads.together(jobs, done=phase.advance)
    costs = budget.step_costs(trainers, self.config.base)
    for name, cost in costs.items():
      self.trainers[name].cost = cost

  def _warm_up(self, trainer: Trainer) -> None:
    """Compiles the measurements, so that no two runs do so at once."""
    state = trainer.start(seed=0).state
    inputs, solution = self.problem.inputs, (state.params, state.statistics)
    train = inputs.train()
    for batches in (inputs.test(), [] if train is None else [train]):
      evaluation.evaluate(self.problem, *solution, batches, trainer.placement)
    args = (state.statistics, self._sharpness_batch())
    loss = MeanLoss(self.problem.evaluation_loss, args)
    loss.value_and_grad(state.params)
    loss.hessian_product(state.params, state.params)
    jax.block_until_ready(loss.value(state.params))

  def _sharpness_batch(self) -> Any:
    inputs = self.problem.inputs
    return jax.device_put(inputs.fixed(self.config.sharpness_examples))

  def _train_all(
    self, runs: list[tuple[int, str]], phase: progress.Phase
  ) -> None:
    def job(seed: int, name: str) -> None:
      phase.detail(f'{name}, seed {seed}')
      run = self._one_run(name, seed, phase.advance)
      self.stored.add(run)
      self.reporter.line(_summary(run, self.problem.objective.measured))

    jobs = [functools.partial(job, *run) for run in runs]
    threads.together(jobs, stop=self.stop)
    phase.detail('')

  def _replay(self, names: set[str]) -> None:
    """Trains seed 0 again, for solutions and states that are not stored."""
    if not names:
      return
    self._compile({name for name in names if not self.trainers[name].cost})

    def job(name: str) -> None:
      end = self._trained(name, seed=0)
      self.solutions[name] = self.trainers[name].solution(end.state)

    with self.reporter.phase('Repeating seed 0', len(names)) as phase:
      jobs = [functools.partial(job, name) for name in names]
      threads.together(jobs, stop=self.stop, done=phase.advance)

  def _trained(
    self, name: str, seed: int, done: Callable[[], None] = lambda: None
  ) -> Progress:
    """Trains a run; stores states of seed 0 to time steps from."""
    trainer = self.trainers[name]

    def after_step(now: Progress) -> None:
      done()
      if self.stop.is_set():
        raise threads.StoppedError
      if seed == 0 and name in self.starts:
        timing.keep_starts(trainer, self.starts[name], now)

    end = trainer.start(seed)
    trainer.run(end, seed, after_step)
    return end

  def _one_run(
    self, name: str, seed: int, done: Callable[[], None]
  ) -> results.Run:
    trainer = self.trainers[name]
    start = time.perf_counter()
    end = self._trained(name, seed, done)
    run = results.Run(
      method=name,
      seed=seed,
      settings=trainer.settings,
      log=end.log,
      evaluations=end.evaluations,
      validations=end.validations,
      sharpness={},
      seconds=time.perf_counter() - start,
      test_values=trainer.test_values(end.state),
      planned_steps=trainer.config.steps,
      stopped=end.stopped,
    )
    if end.stopped:
      return run
    line = []
    if seed == 0:
      params, statistics = self.solutions[name] = trainer.solution(end.state)
      args = (statistics, self._sharpness_batch())
      # The loss of the task, not of the trainer, compiles once for all methods.
      line = surroundings.line(self.problem.evaluation_loss, params, args)
    sharpness = trainer.measure_sharpness(end.state)
    return dataclasses.replace(run, sharpness=sharpness, landscape=line)

  def _time(self, timings: list[results.Timing]) -> list[results.Timing]:
    """Returns the timings of all methods, those that are missing measured."""
    base = self.config.base
    if base not in self.starts:  # its step takes as long everywhere
      self.starts[base] = [self.trainers[base].start(seed=0)]
    names = [name for name in self.trainers if name in self.starts]
    with self.reporter.phase('Timing', self.config.timing_rounds) as phase:
      made = timing.measure(
        {name: self.trainers[name] for name in names},
        {name: self.starts[name] for name in names},
        base=base,
        rounds=self.config.timing_rounds,
        after_round=phase.advance,
      )
    self.starts.clear()
    found = {one.method: one for one in (*made, *timings)}
    return [found[name] for name in self.trainers if name in found]


def _summary(run: results.Run, measured: results.Metric) -> str:
  if run.stopped:
    return (
      f'  {run.method}, seed {run.seed}: diverged at step {run.steps} of '
      f'{run.planned_steps}: {run.stopped}'
    )
  return (
    f'  {run.method}, seed {run.seed}: '
    f'{objectives.shown(measured, run.evaluations[-1])}, '
    f'top eigenvalue {run.sharpness["top_eigenvalue"]:.3g}, '
    f'{run.seconds:.1f} s'
  )
