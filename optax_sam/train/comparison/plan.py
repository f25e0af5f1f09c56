"""The plan of a comparison: its methods and their settings."""

from typing import Any

from optax_sam.train.config import configs
from optax_sam.train.optimizers import build


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
