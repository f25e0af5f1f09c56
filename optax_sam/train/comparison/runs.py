"""Trains and times the runs of a comparison."""

import dataclasses
import datetime as dt
import itertools
import time
from collections.abc import Callable
from typing import Any

import jax

from optax_sam.train.commands import progress
from optax_sam.train.comparison import budget, plan, timing
from optax_sam.train.config import configs
from optax_sam.train.loop import task, train_step
from optax_sam.train.loop.train_step import TrainingState
from optax_sam.train.loop.trainer import Progress, Trainer
from optax_sam.train.reports import machine, random_lines, results


def measure(
  config: configs.CompareConfig,
  settings: dict[str, dict[str, Any]],
  reporter: progress.Reporter,
  command: str,
) -> results.Comparison:
  """Trains and times all methods, until the end or Ctrl-C.

  Args:
    config: the configuration.
    settings: the complete settings of each method, base optimizer first.
    reporter: shows the progress.
    command: the command line, for the report.
  """
  started, start = dt.datetime.now().astimezone(), time.perf_counter()
  problem = task.build(config)
  runs: list[results.Run] = []
  timings: list[results.Timing] = []
  trials: list[results.Trial] = []
  interrupted = False
  try:
    planned, problem = plan.make(
      config, problem, settings, reporter, trials=trials
    )
    trainers = _compile(config, problem, planned, reporter)
    starts = _train(config, trainers, runs, reporter)
    timings += _time(config, trainers, starts, reporter)
  except KeyboardInterrupt:
    interrupted = True
    reporter.line(f'Interrupted; finished runs: {len(runs)}.')
  return results.Comparison(
    settings=configs.settings(config)
    | {
      'methods': list(settings),
      'learning_rate': configs.learning_rate(config),
      'weight_decay': configs.weight_decay(config),
    },
    command=command,
    base=config.base,
    runs=runs,
    timings=timings,
    versions=machine.versions(),
    machine=machine.describe(),
    started=started.isoformat(timespec='seconds'),
    seconds=time.perf_counter() - start,
    interrupted=interrupted,
    total_steps=config.steps,
    test_examples=problem.inputs.test_examples,
    sharpness_radius=config.sharpness_radius,
    budget=config.budget,
    trials=trials,
  )


def _compile(
  config: configs.CompareConfig,
  problem: task.Task,
  planned: plan.Plan,
  reporter: progress.Reporter,
) -> dict[str, Trainer]:
  trainers = {}
  for name, own in planned.settings.items():
    of_method = dataclasses.replace(config, steps=planned.steps[name])
    trainers[name] = Trainer(of_method, problem, name, own)
  with reporter.phase('Compiling', len(trainers)) as phase:
    for name, trainer in trainers.items():
      phase.detail(name)
      trainer.compile()
      phase.advance()
    phase.detail('')
  for name, cost in budget.step_costs(trainers, config.base).items():
    trainers[name].cost = cost
  return trainers


def _train(
  config: configs.CompareConfig,
  trainers: dict[str, Trainer],
  runs: list[results.Run],
  reporter: progress.Reporter,
) -> dict[str, list[Progress]]:
  """Appends finished runs; returns states of seed 0 to time steps from.

  All methods are trained with one seed before the next seed starts, so an
  interrupted comparison has complete pairs.
  """
  starts: dict[str, list[Progress]] = {name: [] for name in trainers}
  points = {
    name: timing.points(trainer.config.steps)
    for name, trainer in trainers.items()
  }
  steps = config.seeds * sum(one.config.steps for one in trainers.values())
  with reporter.phase('Training', steps) as phase:
    for seed, name in itertools.product(range(config.seeds), trainers):
      is_timed = seed == 0 and config.timing_rounds > 0

      def after_step(
        current: Progress, name: str = name, is_timed: bool = is_timed
      ) -> None:
        phase.advance()
        if is_timed:
          # A copy, because the next step donates the buffers of the state.
          count = points[name].count(current.step)
          for _ in range(max(count, bool(current.stopped))):
            state = train_step.copy(current.state)
            starts[name].append(dataclasses.replace(current, state=state))

      phase.detail(f'{name}, seed {seed}')
      runs.append(_one_run(trainers[name], seed, after_step))
      reporter.line(_summary(runs[-1]))
    phase.detail('')
  return starts


def _one_run(
  trainer: Trainer, seed: int, after_step: Callable[[Progress], None]
) -> results.Run:
  start = time.perf_counter()
  current = trainer.start(seed)
  trainer.run(current, seed, after_step)
  seconds = time.perf_counter() - start
  return results.Run(
    method=trainer.name,
    seed=seed,
    settings=trainer.settings,
    log=current.log,
    evaluations=current.evaluations,
    validations=current.validations,
    sharpness={}
    if current.stopped
    else trainer.measure_sharpness(current.state),
    seconds=seconds,
    landscape=[]
    if seed or current.stopped
    else _landscape(trainer, current.state),
    planned_steps=trainer.config.steps,
    stopped=current.stopped,
  )


def _landscape(
  trainer: Trainer, state: TrainingState
) -> list[dict[str, float]]:
  """Returns the loss around a solution, on the examples of sharpness."""
  batch = trainer.task.inputs.fixed(trainer.config.sharpness_examples)
  params, statistics = trainer.solution(state)
  # The loss of the task, not of the trainer, compiles once for all methods.
  line = random_lines.measure(
    trainer.task.evaluation_loss,
    params,
    (statistics, jax.device_put(batch)),
    seed=0,
  )
  return random_lines.rows(line)


def _time(
  config: configs.CompareConfig,
  trainers: dict[str, Trainer],
  starts: dict[str, list[Progress]],
  reporter: progress.Reporter,
) -> list[results.Timing]:
  if not config.timing_rounds:
    return []
  with reporter.phase('Timing', config.timing_rounds) as phase:
    return timing.measure(
      trainers,
      starts,
      base=config.base,
      rounds=config.timing_rounds,
      after_round=phase.advance,
    )


def _summary(run: results.Run) -> str:
  last = run.evaluations[-1]
  if run.stopped:
    return (
      f'  {run.method}, seed {run.seed}: diverged at step {run.steps} of '
      f'{run.planned_steps}: {run.stopped}'
    )
  return (
    f'  {run.method}, seed {run.seed}: test accuracy '
    f'{100 * last["test_accuracy"]:.2f} %, test loss {last["test_loss"]:.4f}, '
    f'top eigenvalue {run.sharpness["top_eigenvalue"]:.3g}, '
    f'{run.seconds:.1f} s'
  )
