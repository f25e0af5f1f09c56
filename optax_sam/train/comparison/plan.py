"""The plan of a comparison: its configuration, methods, settings and steps."""

import dataclasses
from typing import Any

from optax_sam.train.commands import progress
from optax_sam.train.comparison import budget, store, tuning
from optax_sam.train.comparison.store import Plan
from optax_sam.train.config import configs, output_dir
from optax_sam.train.loop.task import Task
from optax_sam.train.optimizers import build

Config = configs.CompareConfig


def resolve(config: Config) -> tuple[Config, dict[str, Any] | None]:
  """Returns the configuration with the settings of an earlier comparison.

  A command that gives only the output takes all settings from there. If what
  is added was interrupted, the same command goes on and adds no more.
  """
  seeds, methods = config.add_seeds, config.add_methods
  adding = {'seeds': seeds, 'methods': list(methods)}
  adds = bool(seeds or methods)
  former = None
  if config.output is not None:
    former = store.former_output(config.output, overwrite=config.overwrite)
  if former is None:
    if adds:
      where = config.output or 'an output'
      msg = (
        f'--add-seeds and --add-methods: there is no comparison in {where}; '
        f'run the first one without them'
      )
      raise ValueError(msg)
    return config, None
  assert config.output is not None
  defaults = configs.settings(Config())
  free = {name: getattr(config, name) for name in store.FREE}
  given = config.set if methods else ()  # settings of the new methods
  plain = dataclasses.replace(
    config, add_seeds=0, add_methods=(), set=() if given else config.set
  )
  stored = configs.build(
    Config,
    {**vars(plain), **defaults, **former['settings'], **free},
    f'{config.output / output_dir.CONFIG}: ',
  )
  if configs.settings(plain) == defaults | free:
    plain = stored
  if not adds:
    return plain, None
  store.check_same(
    config.output, configs.settings(stored), configs.settings(plain)
  )
  if adding != former.get('adding'):  # not the same command, interrupted
    stored = dataclasses.replace(
      stored,
      seeds=stored.seeds + seeds,
      methods=tuple(dict.fromkeys((*stored.methods, *methods))),
      set=tuple(dict.fromkeys((*stored.set, *given))),
    )
  return stored, adding


def method_settings(config: Config) -> dict[str, dict[str, Any]]:
  """Returns the complete settings of each method, base optimizer first.

  Builds every method once, so bad settings raise before any training.
  """
  names = list(dict.fromkeys((config.base, *config.methods)))
  given = build.parse_settings(config.set, names)
  settings = {
    name: build.complete_settings(name, given.get(name, {}), config.rho)
    for name in names
  }
  for name in names:
    build.optimizer(name, settings[name], config, seed=0)
  if config.tune is not None:
    tuning.check(config, settings)
  return settings


def make(
  config: Config,
  task: Task,
  settings: dict[str, dict[str, Any]],
  reporter: progress.Reporter,
  stored: store.Store,
) -> tuple[Plan, Task]:
  """Searches for settings and applies the budget, if the flags say so."""
  if config.tune is not None:
    task, searched = tuning.split(config, task)
    settings = tuning.tune(config, searched, settings, reporter, stored)
  if config.budget != 'steps':
    reporter.line(f'Measuring {config.budget} of a step')
  known = stored.record.plan.steps if stored.record else None
  steps = budget.steps(config, task, settings, stored.trials, known)
  if len(set(steps.values())) > 1:
    each = ', '.join(f'{name} {count}' for name, count in steps.items())
    reporter.line(f'Steps at equal {config.budget}: {each}')
  order = list(settings)
  trials = [trial for trial in stored.trials if trial.method in order]
  trials.sort(key=lambda trial: order.index(trial.method))
  return Plan(settings, steps, trials), task
