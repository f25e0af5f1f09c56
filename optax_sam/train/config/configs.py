"""What a run of the trainer is told: one dataclass per command."""

import dataclasses
import pathlib
from typing import Annotated, Any, Literal

import tyro

Dataset = Literal['digits', 'mnist1d']
TrainDataset = Literal['digits', 'mnist1d', 'imagenet']
# Those of optax_sam.train.models, which this module mustn't load.
Model = Literal[
  'mlp', 'cnn', 'resnet18', 'resnet50', 'wideresnet28x10', 'vit_s16'
]
Dtype = Literal['float32', 'bfloat16']
Base = Literal['sgd', 'adamw']
Execution = Literal['auto', 'jit', 'host']

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

  dataset: str = 'digits'

  model: Model = 'cnn'
  """Cnn: convolutions with batch norm; mlp: dense layers with dropout; the
  others take images."""

  dtype: Dtype = 'float32'
  """What the model computes in; parameters are always float32."""

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

  clip_norm: float | None = None
  """Largest norm of what a method hands on to the base optimizer [default: not
  limited]."""

  label_smoothing: float = 0.0
  """Share of a training label that is spread over all classes."""

  ema_decay: float | None = None
  """Weight of the past in an average of the weights, which is evaluated beside
  the weights themselves [default: no average]."""

  warmup: float = 0.1
  """Share of the steps in which the learning rate rises."""

  label_noise: float = 0.0
  """Share of the training labels that are replaced by a wrong one."""

  rho: float | None = None
  """Radius for all methods [default: each method's own]."""

  set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
  """One setting of one method, as in ae_sam.lambda_2=2."""

  execution: Execution = 'auto'
  """Where a method decides to skip the second gradient: inside the compiled
  step (jit), or on the host, between two compiled parts of it; auto takes the
  faster, which with these models is jit."""

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

  dataset: Dataset = 'digits'
  """Digits ships with scikit-learn; mnist1d is generated on this machine."""

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

  config: pathlib.Path | None = None
  """JSON file of these flags; what is also given here is taken from here."""

  dataset: TrainDataset = 'digits'
  """Digits ships with scikit-learn; mnist1d is generated on this machine;
  imagenet: any images in its layout, or shards of them, in --data-dir."""

  data_dir: pathlib.Path | None = None
  """Of imagenet: directory with train/CLASS/*.JPEG and val/CLASS/*.JPEG, or
  the output of `optax-sam convert`."""

  image_size: int = 224
  """Of imagenet: height and width of the images in pixels."""

  input_threads: int = 16
  """Of imagenet: batches that are made at a time."""

  prefetch: int = 16
  """Of imagenet: batches that are made ahead, each of them held in memory."""

  epochs: int | None = None
  """Passes over the training examples, in place of --steps."""

  mesh: str | None = None
  """Devices that share each batch, as in data=8, or data=4,fsdp=2 if groups of
  two also share the parameters and their states [default: data=N with all
  devices; in a single process, one device if they don't divide the batch]."""

  distributed: bool = False
  """One of several processes that find each other, as on the hosts of a pod."""

  coordinator: str | None = None
  """Where they find each other otherwise: HOST:PORT of the first process."""

  num_processes: int | None = None
  """Number of processes that meet at --coordinator."""

  process_id: int | None = None
  """Which of them this is, from 0."""

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertConfig:
  """Converts an image folder into shards for fast reading."""

  source: pathlib.Path
  """Image folder: train/CLASS/*.JPEG and val/CLASS/*.JPEG."""

  output: pathlib.Path
  """Directory of the shards; an interrupted conversion is continued."""

  shards: int = 256
  """Shards of the training images; as large ones hold the validation images."""

  threads: int = 16
  """Images that are read and checked at a time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharpnessConfig:
  """Measures finished runs of `train` side by side."""

  runs: tyro.conf.Positional[tuple[pathlib.Path, ...]]
  """Directories of the runs, all of the same data."""

  examples: int = 512
  """Training examples on which is measured, the first ones."""

  rho: float = 0.05
  """Radius of the SAM sharpness."""

  adaptive_rho: float = 0.01
  """Radius of the adaptive sharpness, relative to each weight."""

  eigenvalues: int = 3
  """Top eigenvalues of the Hessian."""

  probes: int = 32
  """Random vectors for the trace of the Hessian."""

  seed: int = 0
  """Of everything random."""

  data_dir: pathlib.Path | None = None
  """Of runs on imagenet: where the images are."""

  output: pathlib.Path | None = None
  """Directory of the report [default: runs/sharpness-DATE-TIME]."""

  overwrite: bool = False
  """Replace an earlier output of this command."""


@dataclasses.dataclass(frozen=True)
class MethodsConfig:
  """Prints the table of methods: cost, state, paper."""


# What says where to read and write, and by what means, not what to compute. A
# run may go on with other devices, or with the shards of its images.
_NOT_SETTINGS = (
  'output',
  'overwrite',
  'resume',
  'config',
  'data_dir',
  'input_threads',
  'prefetch',
  'mesh',
  'distributed',
  'coordinator',
  'num_processes',
  'process_id',
  'epochs',  # the number of steps says it
)


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
