"""What a run of the trainer is told: one dataclass per command."""

import dataclasses
import math
import pathlib
from typing import Annotated, Any, Literal, get_args

import tyro

Dataset = Literal['digits', 'mnist1d']
Model = Literal['mlp', 'cnn']
Base = Literal['sgd', 'adamw']
Execution = Literal['jit', 'host']

DEFAULT_METHODS = (
  'sam',
  'asam',
  'friendly_sam',
  'ae_sam',
  'ae_look_sam',
  'k_sam',
)

# What the base optimizers start from unless --learning-rate, --weight-decay
# say otherwise.
LEARNING_RATES = {'sgd': 0.1, 'adamw': 0.003}
WEIGHT_DECAYS = {'sgd': 5e-4, 'adamw': 0.05}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """What `compare` and `train` have in common."""

  dataset: Dataset = 'digits'
  """Digits ships with scikit-learn; mnist1d is generated on this machine."""

  model: Model = 'cnn'
  """Cnn: convolutions with batch norm; mlp: dense layers with dropout."""

  base: Base = 'sgd'
  """The base optimizer (sgd: with momentum 0.9)."""

  steps: int = 300
  """Training steps of a run."""

  batch_size: int = 100
  """Examples in a step."""

  learning_rate: float | None = None
  """Peak of the cosine schedule [default: 0.1 for sgd, 0.003 for adamw]."""

  weight_decay: float | None = None
  """On kernels only [default: 0.0005 for sgd, 0.05 for adamw]."""

  warmup: float = 0.1
  """Share of the steps in which the learning rate rises."""

  label_noise: float = 0.0
  """Share of the training labels that are replaced by a wrong one."""

  rho: float | None = None
  """Radius for all methods [default: each method's own]."""

  set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
  """One setting of one method, as in ae_sam.lambda_2=2."""

  execution: Execution = 'jit'
  """Where a method decides to skip the second gradient: inside the compiled
  step, or on the host, between two compiled parts of it."""

  evaluations: int = 6
  """Evaluations in a run, evenly spaced."""

  log_every: int = 5
  """Steps from one row of the log to the next."""

  sharpness_radius: float = 0.05
  """Radius at which sharpness is measured, the same for all methods."""

  sharpness_examples: int = 256
  """Training examples on which sharpness is measured."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareConfig(Experiment):
  """Trains one model with several methods and seeds, writes a report."""

  methods: tuple[str, ...] = DEFAULT_METHODS
  """Methods to compare with the base optimizer, which is always trained."""

  seeds: int = 3
  """Runs of each method, with seeds 0, 1, ..."""

  timing_rounds: int = 5
  """Rounds of timing after training; 0 leaves the timing out."""

  output: pathlib.Path | None = None
  """Directory of the report [default: runs/DATASET-DATE-TIME]."""

  overwrite: bool = False
  """Replace an earlier output of this command."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Experiment):
  """Trains one model with one method, with checkpoints."""

  method: str = 'sam'
  """The method, or the name of the base optimizer."""

  seed: int = 0
  """Seed of initialization, order of the data and dropout."""

  checkpoint_every: int = 50
  """Steps from one checkpoint to the next; the last three are kept."""

  output: pathlib.Path | None = None
  """Directory of the run [default: runs/METHOD-DATASET-DATE-TIME]."""

  resume: bool = False
  """Go on from the last checkpoint in the output directory."""

  overwrite: bool = False
  """Replace an earlier run."""


@dataclasses.dataclass(frozen=True)
class MethodsConfig:
  """Prints the table of methods: cost, state, paper."""


# What says where and how to write, not what to compute.
_NOT_SETTINGS = ('output', 'overwrite', 'resume')


def settings(config: Experiment) -> dict[str, Any]:
  """Returns everything that decides the numbers, ready for JSON."""
  fields = dataclasses.asdict(config)
  return {
    name: list(value) if isinstance(value, tuple) else value
    for name, value in fields.items()
    if name not in _NOT_SETTINGS
  }


def learning_rate(config: Experiment) -> float:
  """Returns the peak learning rate, the base optimizer's own by default."""
  if config.learning_rate is None:
    return LEARNING_RATES[config.base]
  return config.learning_rate


def weight_decay(config: Experiment) -> float:
  """Returns the weight decay, the base optimizer's own by default."""
  if config.weight_decay is None:
    return WEIGHT_DECAYS[config.base]
  return config.weight_decay


def validate(config: Experiment) -> None:
  """Raises a ValueError that names the first value that cannot be used."""
  for name, choices in (
    ('dataset', Dataset),
    ('model', Model),
    ('base', Base),
    ('execution', Execution),
  ):
    value, allowed = getattr(config, name), get_args(choices)
    if value not in allowed:
      flag = _flag(name)
      msg = f'{flag} {value!r} is unknown; choose one of {", ".join(allowed)}'
      raise ValueError(msg)
  for name, least in _AT_LEAST.items():
    _check(config, name, lambda x, y=least: x >= y, f'at least {least}')
  _check(config, 'label_noise', lambda x: 0 <= x <= 1, 'from 0 to 1')
  _check(config, 'warmup', lambda x: 0 <= x < 1, 'at least 0 and below 1')
  for name in ('learning_rate', 'sharpness_radius'):
    _check(config, name, lambda x: x > 0, 'above 0')
  for name in ('weight_decay', 'rho'):
    _check(config, name, lambda x: x >= 0, 'at least 0')


_AT_LEAST = {
  'steps': 1,
  'batch_size': 1,
  'evaluations': 1,
  'log_every': 1,
  'sharpness_examples': 1,
  'seeds': 1,
  'seed': 0,
  'timing_rounds': 0,
  'checkpoint_every': 1,
}


def _flag(name: str) -> str:
  return '--' + name.replace('_', '-')


def _check(config: Experiment, name: str, holds: Any, allowed: str) -> None:
  value = getattr(config, name, None)  # some belong to one command only
  if value is None:
    return
  if not (math.isfinite(value) and holds(value)):
    msg = f'{_flag(name)} must be {allowed}, not {value}'
    raise ValueError(msg)
