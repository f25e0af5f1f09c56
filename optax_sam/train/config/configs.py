"""Configuration of the commands: one dataclass for each."""

import dataclasses
import pathlib
from typing import Annotated, Any, Literal

import tyro

Dataset = Literal['digits', 'mnist1d']
TrainDataset = Literal['digits', 'mnist1d', 'imagenet']
# The names in optax_sam.train.models, which is slow to import.
Model = Literal[
  'mlp', 'cnn', 'resnet18', 'resnet50', 'wideresnet28x10', 'vit_s16'
]
Dtype = Literal['float32', 'bfloat16']
Base = Literal['sgd', 'adamw']
Execution = Literal['auto', 'jit', 'host']
Budget = Literal['steps', 'gradients', 'seconds']

DEFAULT_METHODS = (
  'sam',
  'asam',
  'friendly_sam',
  'ae_sam',
  'ae_look_sam',
  'k_sam',
)

# Defaults of --learning-rate and --weight-decay.
LEARNING_RATES = {'sgd': 0.1, 'adamw': 0.003}
WEIGHT_DECAYS = {'sgd': 5e-4, 'adamw': 0.05}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """Flags that `compare` and `train` have in common."""

  dataset: str = 'digits'

  model: Model = 'cnn'
  """Cnn: convolutions with batch norm; mlp: dense layers with dropout; the
  others take images."""

  dtype: Dtype = 'float32'
  """Dtype of the computation; parameters are always float32."""

  base: Base = 'sgd'
  """The base optimizer (sgd: with momentum 0.9)."""

  steps: int = 300
  """Training steps of a run."""

  batch_size: int = 100
  """Examples in a batch."""

  learning_rate: float | None = None
  """Peak of the cosine schedule [default: 0.1 for sgd, 0.003 for adamw]."""

  weight_decay: float | None = None
  """Weight decay, on kernels only [default: 0.0005 for sgd, 0.05 for adamw]."""

  clip_norm: float | None = None
  """Largest norm of the gradient that a method forwards to the base optimizer
  [default: not limited]."""

  label_smoothing: float = 0.0
  """Fraction of a training label that is spread over all classes."""

  ema_decay: float | None = None
  """Decay of an exponential moving average of the weights, which is evaluated
  in addition to the weights [default: no average]."""

  warmup: float = 0.1
  """Fraction of the steps in which the learning rate rises."""

  label_noise: float = 0.0
  """Fraction of the training labels that are replaced by a wrong one."""

  rho: float | None = None
  """Radius for all methods [default: each method's own]."""

  set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
  """Setting of a method, as in ae_sam.lambda_2=2."""

  execution: Execution = 'auto'
  """Where a method decides to skip the perturbed gradient: inside the compiled
  step (jit), or on the host, between two compiled functions; auto takes the
  faster one, which is jit with these models."""

  evaluations: int = 6
  """Evaluations in a run, evenly spaced."""

  log_every: int = 5
  """Steps between rows of the log."""

  sharpness_radius: float = 0.05
  """Radius of the SAM sharpness, the same for all methods."""

  sharpness_examples: int = 256
  """Training examples on which sharpness is measured."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareConfig(Experiment):
  """Trains one model with several methods and seeds, writes a report."""

  dataset: Dataset = 'digits'
  """Digits ships with scikit-learn; mnist1d is generated on this machine."""

  methods: tuple[str, ...] = DEFAULT_METHODS
  """Methods to compare with the base optimizer, which is always trained."""

  seeds: int = 3
  """Runs of each method, with seeds 0, 1, ..."""

  tune: tuple[str, ...] | None = None
  """Choose settings of every method on validation examples: radius (alone, the
  default of this flag), learning_rate, or METHOD.SETTING."""

  trials: int = 8
  """With --tune: values that are tried for each method, the base included."""

  validation: float = 0.2
  """With --tune: fraction of the training examples that no run trains on."""

  budget: Budget = 'steps'
  """What is equal for all methods. With gradients or seconds, cheaper methods
  take more steps than --steps, as many as the most expensive one affords."""

  timing_rounds: int = 5
  """Rounds of timing after training; 0 leaves the timing out."""

  output: pathlib.Path | None = None
  """Directory of the report [default: runs/DATASET-DATE-TIME]."""

  overwrite: bool = False
  """Replace an earlier output of this command."""

  add_seeds: int = 0
  """Train so many further seeds for the comparison in --output."""

  add_methods: tuple[str, ...] = ()
  """Train these methods too for the comparison in --output."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Experiment):
  """Trains one model with one method, with checkpoints."""

  config: pathlib.Path | None = None
  """JSON file of these flags; flags of the command line override it."""

  dataset: TrainDataset = 'digits'
  """Digits ships with scikit-learn; mnist1d is generated on this machine;
  imagenet: any images in its layout, or shards of them, in --data-dir."""

  data_dir: pathlib.Path | None = None
  """ImageNet: directory with train/CLASS/*.JPEG and val/CLASS/*.JPEG, or the
  output of `optax-sam convert`."""

  image_size: int = 224
  """ImageNet: height and width of the images in pixels."""

  input_threads: int = 16
  """ImageNet: batches that are prepared concurrently."""

  prefetch: int = 16
  """ImageNet: batches that are prepared in advance, held in memory."""

  epochs: int | None = None
  """Passes over the training examples, instead of --steps."""

  mesh: str | None = None
  """Devices over which each batch is split, as in data=8, or data=4,fsdp=2 if
  parameters and states are also split over groups of two [default: data=N with
  all devices; in a single process, one device if they don't divide the
  batch]."""

  distributed: bool = False
  """One of several processes that find each other, as on a TPU pod."""

  coordinator: str | None = None
  """Address of the first process, HOST:PORT, where --distributed fails."""

  num_processes: int | None = None
  """Number of processes that meet at --coordinator."""

  process_id: int | None = None
  """Index of this process, from 0."""

  method: str = 'sam'
  """The method, or the name of the base optimizer."""

  seed: int = 0
  """Seed of initialization, order of the data and dropout."""

  checkpoint_every: int = 50
  """Steps between checkpoints; the last three are stored."""

  output: pathlib.Path | None = None
  """Directory of the run [default: runs/METHOD-DATASET-DATE-TIME]."""

  resume: bool = False
  """Resume from the last checkpoint in the output directory."""

  overwrite: bool = False
  """Replace an earlier run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertConfig:
  """Converts an image folder into shards for fast reading."""

  source: pathlib.Path
  """Image folder: train/CLASS/*.JPEG and val/CLASS/*.JPEG."""

  output: pathlib.Path
  """Directory of the shards; an interrupted conversion is continued."""

  shards: int = 256
  """Shards of the training images; validation shards are as large."""

  threads: int = 16
  """Images that are read and checked concurrently."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharpnessConfig:
  """Measures the sharpness of finished runs of `train`."""

  runs: tyro.conf.Positional[tuple[pathlib.Path, ...]]
  """Directories of the runs, all on the same data."""

  examples: int = 512
  """Number of training examples to measure on, the first ones."""

  rho: float = 0.05
  """Radius of the SAM sharpness."""

  adaptive_rho: float = 0.01
  """Radius of the adaptive sharpness, relative to each weight."""

  eigenvalues: int = 3
  """Top eigenvalues of the Hessian."""

  probes: int = 32
  """Random vectors for the trace of the Hessian."""

  seed: int = 0
  """Seed of random vectors and directions."""

  data_dir: pathlib.Path | None = None
  """ImageNet: directory of the images."""

  output: pathlib.Path | None = None
  """Directory of the report [default: runs/sharpness-DATE-TIME]."""

  overwrite: bool = False
  """Replace an earlier output of this command."""


@dataclasses.dataclass(frozen=True)
class MethodsConfig:
  """Prints the table of methods: cost, state, paper."""


# Flags that do not change the numbers: paths, devices, threads. A run may
# resume with other devices, or with the shards of its images.
_NOT_SETTINGS = (
  'output',
  'overwrite',
  'resume',
  'add_seeds',
  'add_methods',
  'config',
  'data_dir',
  'input_threads',
  'prefetch',
  'mesh',
  'distributed',
  'coordinator',
  'num_processes',
  'process_id',
  'epochs',  # implied by the number of steps
)


def settings(config: Experiment) -> dict[str, Any]:
  """Returns all settings that affect the numbers, ready for JSON."""
  fields = dataclasses.asdict(config)
  return {
    name: list(value) if isinstance(value, tuple) else value
    for name, value in fields.items()
    if name not in _NOT_SETTINGS
  }


def learning_rate(config: Experiment) -> float:
  """Returns the peak learning rate; the default depends on the base."""
  if config.learning_rate is None:
    return LEARNING_RATES[config.base]
  return config.learning_rate


def weight_decay(config: Experiment) -> float:
  """Returns the weight decay; the default depends on the base."""
  if config.weight_decay is None:
    return WEIGHT_DECAYS[config.base]
  return config.weight_decay
