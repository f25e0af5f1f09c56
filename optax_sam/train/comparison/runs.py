"""Trains, measures and times the runs of a comparison."""

import dataclasses
import datetime as dt
import functools
import threading
import time
from collections.abc import Callable
from typing import Any

import jax

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
from optax_sam.train.loop import evaluation, objectives, task, train_step
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
  """Trains and times what is missing, until the end or Ctrl-C.

  Args:
    config: the configuration.
    settings: the complete settings of each method, base optimizer first.
    reporter: shows the progress.
    command: the command line, for the report.
    problem: the task with all training examples.
    stored: has what is finished, and gets what this call finishes.

  Returns:
    The comparison with all finished runs. After Ctrl-C it is marked
    `interrupted`.

  Raises:
    ValueError: if what is finished is of other data, or has other settings.
    OSError: if a run cannot be stored. Those before it are.
  """
  start = time.perf_counter()
  description = store.describe(problem)
  former = stored.record
  if former is not None:
    stored.check('data and model', former.problem, description)
  try:
    planned, problem = plan.make(
      config,
      problem,
      settings,
      reporter,
      trials=stored.trials,
      save=stored.add_trial,
      known=former.plan.steps if former else None,
    )
  except KeyboardInterrupt:
    reporter.line(f'Interrupted; finished trials: {len(stored.trials)}.')
    planned = plan.Plan(settings, dict.fromkeys(settings, config.steps))
    return _empty(config, problem, planned, command)
  for (name, _), run in stored.runs.items():
    if name in planned.settings:
      stored.check(f'settings of {name}', run.settings, planned.settings[name])
  comparison = _empty(config, problem, planned, command)
  spent = 0.0
  if former is not None:
    kept = ('timings', 'planes', 'spectra', 'started')
    earlier = {name: getattr(former.comparison, name) for name in kept}
    comparison = dataclasses.replace(comparison, **earlier)
    spent = former.comparison.seconds
    command = _commands(former.comparison, comparison)
    comparison = dataclasses.replace(comparison, command=command)
  measured = _Comparison(config, problem, planned, reporter, stored)

  def save(**changes: Any) -> None:
    nonlocal comparison
    seconds = spent + time.perf_counter() - start
    comparison = dataclasses.replace(comparison, seconds=seconds, **changes)
    stored.save(store.Record(planned, description, comparison))

  save()
  try:
    measured.train(comparison.timings, lambda made: save(timings=made))
    found = stored.comparison()
    planes, spectra = measured.surroundings(found)
    save(planes=planes, spectra=spectra, interrupted=False)
  except KeyboardInterrupt:
    reporter.line(f'Interrupted; finished runs: {len(stored.runs)}.')
    save(interrupted=True)
  return stored.comparison()


def _empty(
  config: configs.CompareConfig,
  problem: task.Task,
  planned: plan.Plan,
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


class _Comparison:
  """The runs of a comparison, several at a time."""

  def __init__(
    self,
    config: configs.CompareConfig,
    problem: task.Task,
    planned: plan.Plan,
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
    self.measured: dict[str, tuple[surroundings.Rows, surroundings.Rows]] = {}
    self.starts: dict[str, list[Progress]] = {}

  def train(
    self,
    timings: list[results.Timing],
    save: Callable[[list[results.Timing]], None],
  ) -> None:
    """Trains what is missing; times the steps after the first seed.

    Args:
      timings: the methods that are already timed.
      save: called with the timings of all methods.
    """
    names = list(self.trainers)
    missing = [
      (seed, name)
      for seed in range(self.config.seeds)
      for name in names
      if (name, seed) not in self.stored.runs
    ]
    untimed = set(names) - {one.method for one in timings}
    if not self.config.timing_rounds:
      untimed.clear()
    used = {name for _, name in missing} | untimed
    self._compile([name for name in names if name in used])
    # The first seed that all methods to time have ahead of them, if any.
    seeds = [
      seed
      for seed in range(self.config.seeds)
      if untimed <= {name for number, name in missing if number == seed}
    ]
    timed = seeds[0] if untimed and seeds else -1
    waves = [
      [(seed, name) for seed, name in missing if (seed <= timed) == early]
      for early in (True, False)
    ]
    with self.reporter.phase(
      'Training', sum(self.trainers[name].config.steps for _, name in missing)
    ) as phase:
      for wave in waves:
        self._train_all(wave, timed, untimed, phase)
        if untimed and timed >= 0:
          save(self._time(timings, untimed))
          untimed = set()
    if untimed:  # of runs that are stored: trained again for their states
      self._replay([name for name in names if name in untimed])
      save(self._time(timings, untimed))

  def surroundings(
    self, found: results.Comparison
  ) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns planes and spectra of the base optimizer and the best method."""
    names = [name for name in store.base_and_best(found) if self._runs(name)]
    new = [
      name
      for name in names
      if name not in found.planes or name not in found.spectra
    ]
    if new:
      self._replay([name for name in new if name not in self.solutions])
      with self.reporter.phase('Measuring', len(new)) as phase:
        for name in new:
          self._surroundings(name)
          phase.advance()
    made = self.measured
    return (
      {x: made[x][0] if x in made else found.planes[x] for x in names},
      {x: made[x][1] if x in made else found.spectra[x] for x in names},
    )

  def _surroundings(self, name: str) -> None:
    """Measures plane and spectrum of a solution, once."""
    if name not in self.measured:
      params, statistics = self.solutions[name]
      args = (statistics, self._sharpness_batch())
      given = self.problem.evaluation_loss, params, args
      self.measured[name] = (
        surroundings.plane(*given),
        surroundings.spectrum(*given),
      )

  def _runs(self, name: str) -> bool:
    run = self.stored.runs.get((name, 0))
    return run is not None and not run.stopped

  def _compile(self, names: list[str]) -> None:
    """Compiles all steps, and what is measured, once for all methods."""
    if not names:
      return
    jobs: list[Callable[[], Any]] = [
      *(self.trainers[name].compile for name in names),
      lambda: self._warm_up(self.trainers[names[0]]),
    ]
    with self.reporter.phase('Compiling', len(jobs)) as phase:
      threads.together(jobs, done=phase.advance)
    trainers = {name: self.trainers[name] for name in names}
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
    self,
    runs: list[tuple[int, str]],
    timed: int,
    untimed: set[str],
    phase: progress.Phase,
  ) -> None:
    stop = threading.Event()

    def train(seed: int, name: str) -> None:
      phase.detail(f'{name}, seed {seed}')

      def after_step(current: Progress) -> None:
        phase.advance()
        if stop.is_set():
          raise threads.StoppedError
        if seed == timed and name in untimed:
          self._keep_state(name, current)

      run = self._one_run(name, seed, after_step)
      self.stored.add(run)
      self.reporter.line(_summary(run, self.problem.objective.measured))

    jobs: list[Callable[[], Any]] = [
      functools.partial(train, *run) for run in runs
    ]
    base = self.config.base
    if base in self.solutions:  # of an earlier wave
      jobs.insert(0, functools.partial(self._surroundings, base))
    threads.together(jobs, stop=stop)
    phase.detail('')

  def _replay(self, names: list[str]) -> None:
    """Trains seed 0 again, for solutions and states that are not stored."""
    if not names:
      return
    stop = threading.Event()
    self._compile([name for name in names if not self.trainers[name].cost])

    def replay(name: str) -> None:
      trainer = self.trainers[name]

      def after_step(current: Progress) -> None:
        if stop.is_set():
          raise threads.StoppedError
        self._keep_state(name, current)

      current = trainer.start(seed=0)
      trainer.run(current, 0, after_step)
      self.solutions[name] = trainer.solution(current.state)

    with self.reporter.phase('Repeating seed 0', len(names)) as phase:
      jobs = [lambda name=name: replay(name) for name in names]
      threads.together(jobs, stop=stop, done=phase.advance)

  def _keep_state(self, name: str, current: Progress) -> None:
    """Stores a copy of the state at the points of timing."""
    points = timing.points(self.trainers[name].config.steps)
    # A copy, because the next step donates the buffers of the state.
    for _ in range(max(points.count(current.step), bool(current.stopped))):
      state = train_step.copy(current.state)
      kept = dataclasses.replace(current, state=state)
      self.starts.setdefault(name, []).append(kept)

  def _one_run(
    self, name: str, seed: int, after_step: Callable[[Progress], None]
  ) -> results.Run:
    trainer = self.trainers[name]
    start = time.perf_counter()
    current = trainer.start(seed)
    trainer.run(current, seed, after_step)
    seconds = time.perf_counter() - start
    run = results.Run(
      method=name,
      seed=seed,
      settings=trainer.settings,
      log=current.log,
      evaluations=current.evaluations,
      validations=current.validations,
      sharpness={},
      seconds=seconds,
      test_values=trainer.test_values(current.state),
      planned_steps=trainer.config.steps,
      stopped=current.stopped,
    )
    if current.stopped:
      return run
    line = []
    if seed == 0:
      params, statistics = self.solutions[name] = trainer.solution(
        current.state
      )
      # The loss of the task, not of the trainer, compiles once for all methods.
      line = surroundings.line(
        self.problem.evaluation_loss,
        params,
        (statistics, self._sharpness_batch()),
      )
    sharpness = trainer.measure_sharpness(current.state)
    return dataclasses.replace(run, sharpness=sharpness, landscape=line)

  def _time(
    self, timings: list[results.Timing], untimed: set[str]
  ) -> list[results.Timing]:
    """Returns the timings of all methods, those of `untimed` measured now."""
    base = self.config.base
    names = [name for name in self.trainers if name in {base, *untimed}]
    if base not in self.starts:  # its step takes as long everywhere
      self.starts[base] = [self.trainers[base].start(seed=0)]
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
