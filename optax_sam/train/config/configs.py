"""Configuration of the commands: one dataclass for each."""

import dataclasses
import pathlib
import re
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import tyro

from optax_sam.train.config import flags

# Defaults of --learning-rate and --weight-decay.
_RATES, _OTHER_RATE = {'sgd': 0.1, 'adamw': 0.003}, 0.001
_DECAYS = {'sgd': 5e-4, 'adamw': 0.05}
# Characters of an invalid value in an error message.
_LONGEST = 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment(
  flags.Data, flags.Model, flags.Method, flags.Optimizer, flags.Measurement
):
  """Flags that `compare` and `train` have in common."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareConfig(Experiment, flags.Comparison, flags.Output):
  """Trains one model with several methods and seeds, writes a report."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(
  Experiment, flags.Run, flags.Output, flags.Devices, flags.ImageNet
):
  """Trains one model with one method, with checkpoints."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertConfig:
  """Converts an image folder into shards for fast reading."""

  # Image folder: train/CLASS/*.JPEG and val/CLASS/*.JPEG.
  source: pathlib.Path
  # Directory of the shards; an interrupted conversion is continued.
  output: pathlib.Path
  # Number of shards of the training images; validation shards have the same
  # size.
  shards: flags.Size = 256
  # Images that are read and checked concurrently.
  threads: flags.Size = 16
  # Images with more pixels are left out, without decoding them.
  max_pixels: flags.Count = 2**26


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharpnessConfig:
  """Measures the sharpness of finished runs of `train`."""

  # Directories of the runs, all on the same data.
  runs: tyro.conf.Positional[tuple[pathlib.Path, ...]]
  # Number of training examples to measure on; these are the first ones.
  examples: flags.Count = 512
  # Radius of the SAM sharpness.
  rho: flags.Positive = 0.05
  # Radius of the adaptive sharpness, relative to each weight.
  adaptive_rho: flags.Positive = 0.01
  # Top eigenvalues of the Hessian.
  eigenvalues: flags.Size = 3
  # Random vectors for the trace of the Hessian.
  probes: Annotated[int, msgspec.Meta(ge=2, le=2**31 - 1)] = 32
  # Seed of random vectors and directions.
  seed: flags.Seed = 0
  # Directory of the images, for runs on imagenet, or of a named dataset.
  data_dir: Annotated[
    pathlib.Path | None, flags.flag(default='that of the run')
  ] = None
  # Directory of the report.
  output: Annotated[
    pathlib.Path | None, flags.flag('-o', default='runs/sharpness-DATE-TIME')
  ] = None
  # Replace an earlier output of this command.
  overwrite: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig:
  """Writes the report of a comparison again, from its saved results."""

  # Output of `compare`.
  directory: tyro.conf.Positional[pathlib.Path]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodsConfig:
  """Lists the methods, or describes those that are named."""

  # Methods to describe: rule, settings, cost, paper.
  names: Annotated[
    tyro.conf.Positional[tuple[str, ...]], flags.flag(default='all')
  ] = ()


# Flags that do not change the numbers: paths, devices, threads. A run may
# resume with other devices, or with the shards of its images.
_NOT_SETTINGS = {
  *flags.Output.__annotations__,
  *flags.Devices.__annotations__,
  *('resume', 'config', 'data_dir', 'input_threads', 'prefetch'),
  *('add_seeds', 'add_methods'),
  'epochs',  # implied by the number of steps
}
_PROBLEM = re.compile(
  r'((?:Expected `\w+` ([<>]=?) (\S+)|.*)) - at `\$\.(\w+).*', re.DOTALL
)
_WORDS = {'>=': 'at least', '<=': 'at most', '>': 'above', '<': 'below'}
T = TypeVar('T')


def build(kind: type[T], values: Mapping[str, Any], where: str = '') -> T:
  """Returns a configuration, after checking names, types and ranges.

  Raises:
    ValueError: that names the first invalid value, after `where`.
  """
  hints = typing.get_type_hints(kind)
  for name in values.keys() - hints:
    known = ', '.join(sorted(hints)).replace('_', '-')
    msg = f'{where}unknown flag {name!r}; choose among {known}'
    raise ValueError(msg)
  try:
    return msgspec.convert(
      dict(values), kind, dec_hook=lambda made, value: made(value)
    )
  except msgspec.ValidationError as error:
    found = _PROBLEM.fullmatch(str(error))
    assert found is not None
    allowed, compared, limit, name = found.groups()
    if compared:
      allowed = f'must be {_WORDS[compared]} {limit.removesuffix(".0")}'
    elif typing.get_origin(hints[name]) is Literal:
      allowed = f'must be one of {", ".join(typing.get_args(hints[name]))}'
    shown = repr(values[name])
    if len(shown) > _LONGEST:
      shown = f'{shown[:20]}... of {len(shown)} characters'
    msg = f'{where}{flags.name(name)} {allowed}, not {shown}'
    msg = msg.replace('Expected', 'must be').replace('`', '')
    raise ValueError(msg) from None


def settings(config: Experiment) -> dict[str, Any]:
  """Returns all settings that affect the numbers, ready for JSON."""
  return {
    name: list(value) if isinstance(value, tuple) else value
    for name, value in dataclasses.asdict(config).items()
    if name not in _NOT_SETTINGS
  }


def differences(
  former: Mapping[str, Any],
  now: Mapping[str, Any],
  names: Iterable[str] | None = None,
) -> list[str]:
  """Returns what differs between two settings, in words; some names or all."""
  return [
    f'{name} was {former.get(name)!r} and is now {now.get(name)!r}'
    for name in sorted(former.keys() | now.keys() if names is None else names)
    if former.get(name) != now.get(name)
  ]


def learning_rate(config: Experiment) -> float:
  """Returns the peak learning rate; the default depends on the base."""
  given = config.learning_rate
  return _RATES.get(config.base, _OTHER_RATE) if given is None else given


def weight_decay(config: Experiment) -> float:
  """Returns the weight decay; the default depends on the base."""
  given = config.weight_decay
  return _DECAYS.get(config.base, 0.0) if given is None else given


def dataset_name(config: Experiment) -> str:
  """Returns the name of the dataset, without directory and ending."""
  return pathlib.Path(config.dataset).stem or 'data'
