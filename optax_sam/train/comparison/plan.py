"""The plan of a comparison: its methods and their settings."""

import dataclasses
from typing import Any

from optax_sam.train.config import configs
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
  return settings
