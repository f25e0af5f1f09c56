"""Trains, measures and times the runs of a comparison."""

import dataclasses
import functools
import threading
import time
from collections.abc import Sequence
from typing import Any

import jax

from optax_sam.train.commands import progress
from optax_sam.train.comparison import (
  plan,
  store,
  surroundings,
  threads,
  timing,
)
from optax_sam.train.config import configs
from optax_sam.train.loop import evaluation, objectives, task
from optax_sam.train.loop.trainer import Progress, Trainer
from optax_sam.train.optimizers import registry
from optax_sam.train.reports import results


def measure(
  config: configs.CompareConfig,
  settings: store.Settings,
  reporter: progress.Reporter,
  command: str,
  problem: task.Task,
  stored: store.Store,
) -> results.Comparison:
  """Trains and times what is missing, until the end or Ctrl-C."""
  former, described = stored.record, store.describe(problem)
  same = functools.partial(store.check_same, stored.directory)
  if former is not None:
    same(former.problem, described, 'data and model: ')
  settings, steps, problem = plan.make(
    config, problem, settings, reporter, stored
  )
  for (name, _), run in stored.runs.items():
    same(run.settings, settings.get(name, run.settings), f'{name}: ')
  comparison = results.Comparison(
    settings=configs.settings(config)
    | {
      'methods': list(settings),
      'learning_rate': configs.learning_rate(config),
      'weight_decay': configs.weight_decay(config),
    },
    command=command,
    base=config.base,
    runs=[],
    interrupted=True,
    total_steps=config.steps,
    test_examples=problem.inputs.test_examples,
    sharpness_radius=config.sharpness_radius,
    metric=problem.objective.measured,
    budget=config.budget,
  )
  if former is not None:
    names = ('timings', 'planes', 'spectra', 'started', 'seconds', 'command')
    kept = {name: getattr(former.comparison, name) for name in names}
    if former.comparison.settings != comparison.settings:  # something is added
      kept['command'] += f' && {command}'
    comparison = dataclasses.replace(comparison, **kept)
  trainers = {}
  for name, own in settings.items():
    of_method = dataclasses.replace(config, steps=steps[name])
    trainers[name] = Trainer(of_method, problem, name, own)
  own_task = config.base in registry.BASES or None in problem.objective.names
  functions = {
    name: trainer.checksum()
    for name, trainer in trainers.items()
    if stored.directory and (own_task or trainer.method.is_own)
  }
  if former is not None:
    known = {name: functions.get(name) for name in former.functions}
    same(former.functions, known, 'own functions: ')
  stored.save(store.Record(settings, steps, described, comparison, functions))
  runs = _Runs(config, problem, trainers, reporter, stored)
  try:
    runs.train_all()
    runs.measure_surroundings()
    stored.update(interrupted=False)
  except KeyboardInterrupt:
    if not stored.runs:
      raise
    reporter.line(f'Interrupted; finished runs: {len(stored.runs)}.')
    stored.update(interrupted=True)
  return stored.comparison()


@dataclasses.dataclass
class _Runs:
  """The runs of a comparison, several at a time."""

  config: configs.CompareConfig
  problem: task.Task
  trainers: dict[str, Trainer]
  reporter: progress.Reporter
  stored: store.Store
  # Of seed 0: solutions, and states to time steps from.
  solutions: dict[str, Any] = dataclasses.field(default_factory=dict)
  starts: dict[str, list[Progress]] = dataclasses.field(default_factory=dict)
  stop: threading.Event = dataclasses.field(default_factory=threading.Event)

  def train_all(self) -> None:
    """Trains what is missing; times the steps after the first seed."""
    timed = {one.method: one for one in self.stored.comparison().timings}
    if self.config.timing_rounds:
      self.starts = {name: [] for name in self.trainers if name not in timed}
    missing = [
      (seed, name)
      for seed in range(self.config.seeds)
      for name in self.trainers
      if (name, seed) not in self.stored.runs
      or (seed == 0 and name in self.starts)
    ]
    self._train([run for run in missing if run[0] == 0])
    if self.starts:
      timed |= {one.method: one for one in self._time()}
      found = [timed[name] for name in self.trainers if name in timed]
      self.stored.update(timings=found)
    self._train([run for run in missing if run[0] > 0])

  def measure_surroundings(self) -> None:
    """Stores planes and spectra of the base optimizer and the best method."""
    found = self.stored.comparison()
    best = [name for name in found.ranking() if name != found.base][:1]
    names = [
      run.method
      for run in found.runs
      if run.seed == 0 and not run.stopped and run.method in (found.base, *best)
    ]
    new = [name for name in names if name not in found.spectra]
    if not new:
      return
    self._train([(0, name) for name in new if name not in self.solutions])
    planes, spectra = dict(found.planes), dict(found.spectra)
    with self.reporter.phase('Measuring', len(new)) as phase:
      for name in new:
        params, statistics = self.solutions[name]
        loss = self.trainers[name].task.evaluation_loss
        given = loss, params, (statistics, self.batch)
        planes[name] = surroundings.plane(*given)
        spectra[name] = surroundings.spectrum(*given)
        phase.advance()
    self.stored.update(
      planes={name: planes[name] for name in names},
      spectra={name: spectra[name] for name in names},
    )

  @functools.cached_property
  def batch(self) -> Any:
    """The examples on which sharpness is measured."""
    return jax.device_put(
      self.problem.inputs.fixed(self.config.sharpness_examples)
    )

  def _train(self, runs: Sequence[tuple[int, str]]) -> None:
    """Trains runs of (seed, method), also for what is not stored of them."""
    trainers = {name: self.trainers[name] for _, name in runs}
    if not runs:
      return
    if any(not trainer.cost for trainer in trainers.values()):
      with self.reporter.phase('Compiling', len(trainers)) as phase:
        compiled = [trainer.compile for trainer in trainers.values()]
        threads.together(compiled, done=phase.advance)
      for name, cost in plan.step_costs(trainers, self.config.base).items():
        trainers[name].cost = cost
    total = sum(trainers[name].config.steps for _, name in runs)
    with self.reporter.phase('Training', total) as phase:
      jobs = [functools.partial(self._one_run, *run, phase) for run in runs]
      threads.together(jobs, stop=self.stop)

  def _one_run(self, seed: int, name: str, phase: progress.Phase) -> None:
    """Trains, measures and stores a run; saves what the first seed gives."""
    trainer, start = self.trainers[name], time.perf_counter()
    phase.detail(f'{name}, seed {seed}')

    def after_step(now: Progress) -> None:
      phase.advance()
      threads.check(self.stop)
      if seed == 0 and name in self.starts:
        timing.keep_starts(trainer, self.starts[name], now)

    end = trainer.start(seed)
    trainer.run(end, seed, after_step)
    if seed == 0 and not end.stopped:
      self.solutions[name] = trainer.solution(end.state)
    if (name, seed) in self.stored.runs:
      return
    sharpness, line = {}, []
    if not end.stopped:
      sharpness = trainer.measure_sharpness(end.state)
      if seed == 0:
        params, statistics = self.solutions[name]
        # Without adapters it compiles once for all methods.
        loss = trainer.task.evaluation_loss
        given = loss, params, (statistics, self.batch)
        line = surroundings.line(*given)
    run = results.Run(
      method=name,
      seed=seed,
      settings=trainer.settings,
      log=end.log,
      evaluations=end.evaluations,
      validations=end.validations,
      sharpness=sharpness,
      landscape=line,
      seconds=time.perf_counter() - start,
      test_values=evaluation.test_values(
        trainer.task, *trainer.solution(end.state), trainer.placement
      ),
      stopped=end.stopped,
    )
    self.stored.add(run)
    text = f'diverged at step {end.step} of {trainer.config.steps}'
    if end.stopped:
      text += f': {end.stopped}'
    else:
      last, metric = end.evaluations[-1], self.problem.objective.measured
      eigenvalue = f'top eigenvalue {sharpness["top_eigenvalue"]:.3g}'
      text = f'{objectives.shown(metric, last)}, {eigenvalue}'
    self.reporter.line(f'  {name}, seed {seed}: {text}')

  def _time(self) -> list[results.Timing]:
    """Returns the timings of the methods with states to start from."""
    base, starts = self.config.base, dict(self.starts)
    self.starts.clear()
    # The step of the base takes as long everywhere.
    starts.setdefault(base, [self.trainers[base].start(seed=0)])
    trainers = {x: one for x, one in self.trainers.items() if x in starts}
    self.reporter.line('Timing')
    rounds = self.config.timing_rounds
    return timing.measure(trainers, starts, base=base, rounds=rounds)
