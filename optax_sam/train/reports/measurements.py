"""Measurements of finished runs."""

import dataclasses
from typing import Any

from optax_sam.train.config.configs import SharpnessConfig

ASCENT_STEPS = 20  # for a SAM sharpness close to the maximum


@dataclasses.dataclass(frozen=True)
class Measurements:
  """The results of `optax-sam sharpness`, by name of the run.

  `numbers` are `test_accuracy` and the measures; `lines` have `position` and
  `loss` along one random direction; `started` is an ISO date.
  """

  config: SharpnessConfig
  command: str
  settings: dict[str, dict[str, Any]]
  numbers: dict[str, dict[str, float]]
  lines: dict[str, list[dict[str, float]]]
  versions: dict[str, str]
  machine: dict[str, str]
  started: str
  seconds: float
