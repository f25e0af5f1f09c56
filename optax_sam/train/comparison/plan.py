"""The plan of a comparison: its configuration, methods, settings and steps."""

import dataclasses
import functools
import statistics
from collections.abc import Mapping
from typing import Any

from optax_sam.train.commands import progress
from optax_sam.train.comparison import store, threads, timing, tuning
from optax_sam.train.comparison.store import Settings
from optax_sam.train.config import configs, output_dir
from optax_sam.train.loop.cost import StepCost
from optax_sam.train.loop.task import Task
from optax_sam.train.loop.trainer import Progress, Trainer
from optax_sam.train.optimizers import build

Config = configs.CompareConfig
# Length of a pilot run, as a fraction of a run.
_PILOT = 1 / 4
_TIMING_ROUNDS = 5


def resolve(config: Config) -> tuple[Config, dict[str, Any] | None]:
  """Returns the configuration with the settings of an earlier comparison.

  A command that gives only the output takes all settings from there. If a
  command that adds runs was interrupted, the same command continues it.
  """
  seeds, methods, output = config.add_seeds, config.add_methods, config.output
  adding = {'seeds': seeds, 'methods': list(methods)}
  former = None
  if output is not None:
    former = store.former_output(output, overwrite=config.overwrite)
  if output is None or former is None:
    if any(adding.values()):
      msg = (
        f'--add-seeds and --add-methods: there is no comparison in '
        f'{output or "an output"}; run the first one without them'
      )
      raise ValueError(msg)
    return config, None
  defaults = configs.settings(Config())
  # With new methods, --set has only their settings.
  given = dataclasses.replace(config, set=() if methods else config.set)
  plain = {**vars(config), 'add_seeds': 0, 'add_methods': (), **defaults}
  where = f'{output / output_dir.CONFIG}: '
  stored = configs.build(Config, plain | former['settings'], where)
  if configs.settings(given) == defaults:
    given = stored
  if not any(adding.values()):
    return given, None
  store.check_same(output, configs.settings(stored), configs.settings(given))
  if adding != former.get('adding'):  # not the same command, interrupted
    stored = dataclasses.replace(
      stored,
      seeds=stored.seeds + seeds,
      methods=tuple(dict.fromkeys((*stored.methods, *methods))),
      set=tuple(dict.fromkeys((*stored.set, *config.set))),
    )
  return stored, adding


def method_settings(config: Config) -> Settings:
  """Returns the complete settings of each method, base optimizer first."""
  names = list(dict.fromkeys((config.base, *config.methods)))
  settings = build.method_settings(names, config)
  if config.tune is not None:
    tuning.check(config, settings)
  return settings


def make(
  config: Config,
  task: Task,
  settings: Settings,
  reporter: progress.Reporter,
  stored: store.Store,
) -> tuple[Settings, dict[str, int], Task]:
  """Returns settings and steps after the search, and the task without it.

  A `learning_rate` in the settings replaces that of the configuration.
  """
  if config.tune is not None:
    task, searched = tuning.split(config, task)
    settings = tuning.tune(config, searched, settings, reporter, stored)
  if config.budget != 'steps':
    reporter.line(f'Measuring {config.budget} of a step')
  known = stored.record.steps if stored.record else {}
  found = steps(config, task, settings, known)
  if len(set(found.values())) > 1:
    each = ', '.join(f'{name} {count}' for name, count in found.items())
    reporter.line(f'Steps at equal {config.budget}: {each}')
  return settings, found, task


def steps(
  config: Config, task: Task, settings: Settings, known: Mapping[str, int]
) -> dict[str, int]:
  """Returns the number of training steps of each method.

  With the budget `steps` they are equal. With `gradients` or `seconds`, the
  most expensive method takes `config.steps` steps, and cheaper methods take
  proportionally more. Methods that are added to those with `known` steps
  get the same budget.
  """
  known = {name: known[name] for name in settings if name in known}
  new = [name for name in settings if name not in known]
  if config.budget == 'steps' or not new:
    return dict.fromkeys(settings, config.steps) | known
  base, length = config.base, max(1, round(_PILOT * config.steps))
  short = dataclasses.replace(config, steps=length, evaluations=1)
  pilots = {
    name: Trainer(short, task, name, settings[name])
    for name in dict.fromkeys((base, *new))
  }
  threads.together(pilot.compile for pilot in pilots.values())
  measured = _gradients if config.budget == 'gradients' else _seconds
  costs = measured(pilots, base)
  affordable = config.steps * max(costs.values())
  if base in known:
    affordable = known[base] * costs[base]
  found = {name: max(1, round(affordable / costs[name])) for name in new}
  return {name: (found | known)[name] for name in settings}


def _gradients(pilots: Mapping[str, Trainer], base: str) -> dict[str, float]:
  """Returns the mean cost of a step; a pilot run counts the skipped ones."""
  costs = {}
  for name, cost in step_costs(pilots, base).items():
    costs[name] = cost.ascended
    if cost.skipped != cost.ascended:
      end = pilots[name].start(tuning.SEED)
      pilots[name].run(end, tuning.SEED)
      last = end.log[-1]
      costs[name] = cost.until(1, last['second_gradients'] / last['step'])
  return costs


def _seconds(pilots: Mapping[str, Trainer], base: str) -> dict[str, float]:
  """Returns the median seconds of a step; the methods alternate."""
  starts: dict[str, list[Progress]] = {name: [] for name in pilots}
  for name, pilot in pilots.items():
    keep = functools.partial(timing.keep_starts, pilot, starts[name])
    pilot.run(pilot.start(tuning.SEED), tuning.SEED, keep)
  timings = timing.measure(pilots, starts, base=base, rounds=_TIMING_ROUNDS)
  return {one.method: statistics.median(one.milliseconds) for one in timings}


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


def _operations(trainer: Trainer) -> float:
  if trainer.on_host:  # several functions; the single one is the same step
    config = dataclasses.replace(trainer.config, execution='jit')
    trainer = Trainer(config, trainer.task, trainer.name, trainer.settings)
  counted = float(trainer.compile().cost_analysis()['flops'])
  return counted * trainer.repetition
