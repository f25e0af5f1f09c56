"""Measurements of finished runs."""

import dataclasses
from typing import Any

from optax_sam.train.config.configs import SharpnessConfig

ASCENT_STEPS = 20  # for a SAM sharpness close to the maximum


@dataclasses.dataclass(frozen=True)
class Measurements:
  """The results of `optax-sam sharpness`.

  Attributes:
    config: The configuration of the command.
    command: The command line.
    settings: Settings of the runs, by name.
    numbers: `test_accuracy` and the measures, by name of the run.
    lines: Rows of `position` and `loss` along one random direction, by name of
      the run.
    versions: Versions of Python and of the libraries.
    machine: Device, processor, cores and operating system.
    started: Start time, as an ISO date.
    seconds: Wall time.
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
