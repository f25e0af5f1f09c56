"""The cost of the methods' steps, and how many steps a budget affords."""

import dataclasses
import functools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from optax_sam.train.comparison import threads, timing
from optax_sam.train.comparison.tuning import SEED
from optax_sam.train.config import configs
from optax_sam.train.loop.cost import StepCost
from optax_sam.train.loop.task import Task
from optax_sam.train.loop.trainer import Progress, Trainer
from optax_sam.train.optimizers import build
from optax_sam.train.reports.results import Trial

# Length of a pilot run, as a fraction of a run.
_PILOT = 1 / 4
_TIMING_ROUNDS = 5


def step_costs(
  trainers: Mapping[str, Trainer], base: str
) -> dict[str, StepCost]:
  """Returns the operations of a step, in units of a step of the base.

  XLA counts them in the compiled steps, and a conditional as its costlier
  branch. A skipped step counts as a step of the base, because it computes one
  gradient, as the tests of the library check. Work between steps, such as a
  validation, does not count.
  """
  first = next(iter(trainers.values()))
  alone = trainers.get(base) or Trainer(first.config, first.task, base, {})
  unit = _operations(alone)
  costs = {}
  for name, trainer in trainers.items():
    ascended = 1.0 if name == base else _operations(trainer) / unit
    costs[name] = StepCost(
      ascended, 1.0 if build.method(name).skips else ascended
    )
  return costs


def steps(
  config: configs.CompareConfig,
  task: Task,
  settings: Mapping[str, dict[str, Any]],
  trials: Sequence[Trial] = (),
  known: Mapping[str, int] | None = None,
) -> dict[str, int]:
  """Returns the number of training steps of each method.

  With the budget `steps` they are equal. With `gradients` or `seconds`, the
  most expensive method takes `config.steps`, and the others as many more as
  their steps are cheaper. The mean cost of a method that skips depends on the
  fraction of steps that take an ascent step. It is that of its longest trial
  with these settings, or else of a pilot run.
  """
  known = {name: n for name, n in (known or {}).items() if name in settings}
  new = [name for name in settings if name not in known]
  if config.budget == 'steps' or not new:
    return dict.fromkeys(settings, config.steps) | known
  anchor = list(known)[:1]
  short = dataclasses.replace(
    config, steps=max(1, round(_PILOT * config.steps)), evaluations=1
  )
  pilots = {
    name: Trainer(short, task, name, settings[name])
    for name in dict.fromkeys((config.base, *anchor, *new))
  }
  threads.together(pilot.compile for pilot in pilots.values())
  if config.budget == 'gradients':
    costs = {
      name: cost.until(1, _fraction(pilots[name], cost, trials))
      for name, cost in step_costs(pilots, config.base).items()
    }
  else:
    costs = _seconds(pilots, config.base)
  affordable = config.steps * max(costs[name] for name in new)
  for name in anchor:
    affordable = known[name] * costs[name]
  found = {name: max(1, round(affordable / costs[name])) for name in new}
  return {name: (found | known)[name] for name in settings}


def _fraction(pilot: Trainer, cost: StepCost, trials: Sequence[Trial]) -> float:
  """Returns the fraction of the steps that take an ascent step."""
  if cost.skipped == cost.ascended:
    return 1.0
  own = [
    trial
    for trial in trials
    if trial.method == pilot.name
    and trial.settings.items() <= pilot.settings.items()
  ]
  if own:
    return max(own, key=lambda trial: trial.steps).second_gradients
  end = pilot.start(SEED)
  pilot.run(end, SEED, lambda _: None)
  return end.log[-1]['second_gradients'] / end.log[-1]['step']


def _seconds(pilots: Mapping[str, Trainer], base: str) -> dict[str, float]:
  """Returns the median seconds of a step; the methods alternate."""
  starts: dict[str, list[Progress]] = {name: [] for name in pilots}
  for name, pilot in pilots.items():
    keep = functools.partial(timing.keep_starts, pilot, starts[name])
    pilot.run(pilot.start(SEED), SEED, keep)
  timings = timing.measure(pilots, starts, base=base, rounds=_TIMING_ROUNDS)
  return {one.method: statistics.median(one.milliseconds) for one in timings}


def _operations(trainer: Trainer) -> float:
  if trainer.on_host:  # several functions; the single one is the same step
    config = dataclasses.replace(trainer.config, execution='jit')
    trainer = Trainer(config, trainer.task, trainer.name, trainer.settings)
  counted = float(trainer.compile().cost_analysis()['flops'])
  return counted * trainer.repetition
