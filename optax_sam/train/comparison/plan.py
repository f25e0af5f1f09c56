"""The plan of a comparison: its methods and their settings."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from optax_sam.train.commands import progress
from optax_sam.train.comparison import budget, tuning
from optax_sam.train.config import configs
from optax_sam.train.loop.task import Task
from optax_sam.train.optimizers import build
from optax_sam.train.reports import results


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a comparison trains, after the search for settings and the budget.

  Attributes:
    settings: complete settings of each method, base optimizer first. A
      `learning_rate` replaces that of the configuration, for this method.
    steps: number of training steps of each method.
    trials: the runs of the search for settings; empty without a search.
  """

  settings: dict[str, dict[str, Any]]
  steps: dict[str, int]
  trials: list[results.Trial] = dataclasses.field(default_factory=list)


def method_settings(config: configs.CompareConfig) -> dict[str, dict[str, Any]]:
  """Returns the complete settings of each method, base optimizer first.

  Builds every method once, so bad settings raise before any training.

  Args:
    config: the configuration.

  Raises:
    ValueError: if a method or a setting is unknown or out of its range.
  """
  build.check_names(config.methods, config.base)
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
  config: configs.CompareConfig,
  task: Task,
  settings: dict[str, dict[str, Any]],
  reporter: progress.Reporter,
  *,
  trials: list[results.Trial],
  save: Callable[[results.Trial], None] = lambda _: None,
  known: Mapping[str, int] | None = None,
) -> tuple[Plan, Task]:
  """Searches for settings and applies the budget, if the flags say so.

  Args:
    config: the configuration.
    task: the task with all training examples.
    settings: result of `method_settings`.
    reporter: shows the progress.
    trials: finished trials, which are not repeated; new ones are appended.
    save: called with each new trial.
    known: steps of methods that are already trained.

  Returns:
    The plan, and the task of the runs. With a search it lacks the validation
    examples.

  Raises:
    ValueError: if there are too few examples; raised before any training.
  """
  if config.tune is not None:
    task, searched = tuning.split(config, task)
    settings = tuning.tune(config, searched, settings, reporter, trials, save)
  if config.budget != 'steps':
    reporter.line(f'Measuring {config.budget} of a step')
  steps = budget.steps(config, task, settings, trials, known)
  if len(set(steps.values())) > 1:
    each = ', '.join(f'{name} {count}' for name, count in steps.items())
    reporter.line(f'Steps at equal {config.budget}: {each}')
  order = list(settings)
  made = [trial for trial in trials if trial.method in settings]
  made.sort(key=lambda trial: order.index(trial.method))
  return Plan(settings, steps, made), task
