"""Flags of the commands, in the groups of the help text."""

import dataclasses
import pathlib
from typing import Annotated, Any, Literal

import tyro

Dtype = Literal['float32', 'bfloat16']
Execution = Literal['auto', 'jit', 'host']
Budget = Literal['steps', 'gradients', 'seconds']

# The names in optax_sam.train.models and its losses, which are slow to import.
MODELS = ('mlp', 'cnn', 'resnet18', 'resnet50', 'wideresnet28x10', 'vit_s16')

DEFAULT_METHODS = (
  'sam',
  'asam',
  'friendly_sam',
  'ae_sam',
  'ae_look_sam',
  'look_sam',
)


def flag(*aliases: str, default: str | None = None, value: str = '') -> Any:
  """Describes a flag.

  Args:
    *aliases: other names of the flag.
    default: what the help text says of the default, if it is not a value.
    value: placeholder of the value.
  """
  return tyro.conf.arg(
    aliases=aliases or None,
    help_behavior_hint=f'(default: {default})' if default else None,
    metavar=value or None,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
  """Flags of the data."""

  dataset: Annotated[str, flag(value='NAME|PATH')] = 'digits'
  """digits, mnist1d, fashion_mnist, cifar10, cifar100, or a path: an .npz file
  with x_train, y_train, x_test and y_test, a directory of IDX files, or a
  folder train/CLASS/*.png with test/CLASS/*.png. `train` also takes
  imagenet."""

  data_dir: Annotated[
    pathlib.Path | None,
    flag(default='$OPTAX_SAM_DATA, then the system', value='PATH'),
  ] = None
  """Directory with the files of a named dataset."""

  train_examples: Annotated[int | None, flag(default='all', value='INT')] = None
  """Train on the first examples only: so many, with the same fraction of every
  class."""

  label_noise: float = 0.0
  """Fraction of the training labels that are replaced by a wrong one."""

  resize: Annotated[int | None, flag(default='unchanged', value='INT')] = None
  """Height and width in pixels to which the images of a folder are resized."""

  max_pixels: int = 2**26
  """Images with more pixels are not decoded: of a folder they are refused, of
  imagenet skipped."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
  """Flags of the model and its loss."""

  model: Annotated[str, flag(value='NAME|MODULE:NAME')] = 'cnn'
  """cnn (convolutions with batch norm), mlp (dense layers with dropout),
  resnet18, resnet50, wideresnet28x10, vit_s16, or your own as
  package.module:Name or file.py:Name."""

  dtype: Dtype = 'float32'
  """Dtype of the computation; parameters are always float32. Your own model
  chooses its own."""

  loss: Annotated[str, flag(value='NAME')] = 'cross_entropy'
  """cross_entropy of classes, mean_squared_error of numbers, or next_token for
  sequences of tokens."""

  metric: Annotated[
    str | None, flag(default='the usual one of the loss', value='NAME')
  ] = None
  """What methods are compared by, on the test examples."""

  label_smoothing: float = 0.0
  """Fraction of a training label that is spread over all classes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
  """Flags of the base optimizer and the length of training."""

  base: Annotated[str, flag('--optimizer', value='NAME')] = 'sgd'
  """The base optimizer: sgd (with momentum 0.9), adamw, or any other of Optax
  that needs only a learning rate and numbers, such as lion or muon. Set its
  arguments with --set base.NAME=VALUE."""

  steps: int = 300
  """Training steps of a run."""

  batch_size: int = 100
  """Examples in a batch."""

  learning_rate: Annotated[
    float | None,
    flag(
      '--lr',
      default='0.1 for sgd, 0.003 for adamw, else 0.001',
      value='FLOAT',
    ),
  ] = None
  """Peak of the cosine schedule."""

  warmup: float = 0.1
  """Fraction of the steps in which the learning rate rises."""

  weight_decay: Annotated[
    float | None,
    flag(default='0.0005 for sgd, 0.05 for adamw, else 0', value='FLOAT'),
  ] = None
  """Weight decay, on kernels only if the optimizer can tell them apart."""

  clip_norm: Annotated[float | None, flag(default='none', value='FLOAT')] = None
  """Largest norm of the gradient that a method forwards to the base
  optimizer."""

  ema_decay: Annotated[
    float | None, flag(default='no average', value='FLOAT')
  ] = None
  """Decay of an exponential moving average of the weights, which is evaluated
  in addition to the weights."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
  """Flags of the sharpness-aware methods."""

  rho: Annotated[
    float | None, flag(default="each method's own", value='FLOAT')
  ] = None
  """Radius of the perturbation, for all methods."""

  set: Annotated[
    tuple[str, ...],
    tyro.conf.UseAppendAction,
    flag(value='NAME.ARGUMENT=VALUE'),
  ] = ()
  """Argument of a method, as in ae_sam.lambda_2=2, or of the base optimizer,
  as in base.momentum=0.95."""

  execution: Execution = 'auto'
  """Where a method decides to skip the perturbed gradient: inside the compiled
  step (jit), or on the host, between two compiled functions; auto takes the
  faster one, which is jit with the built-in models."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
  """Flags of what is measured."""

  evaluations: int = 6
  """Evaluations in a run, evenly spaced; at most one a step."""

  log_every: int = 5
  """Steps between rows of the log."""

  sharpness_radius: float = 0.05
  """Radius of the SAM sharpness, the same for all methods."""

  sharpness_examples: int = 256
  """Number of training examples on which sharpness is measured."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
  """Flags of `compare` alone."""

  methods: Annotated[tuple[str, ...], flag('-m', value='NAME,NAME')] = (
    DEFAULT_METHODS
  )
  """Methods to compare with the base optimizer, which is always trained."""

  seeds: int = 3
  """Runs of each method, with seeds 0, 1, ..."""

  tune: Annotated[
    tuple[str, ...] | None, flag(default='no search', value='[NAME ...]')
  ] = None
  """Choose settings of every method on validation examples: radius (which
  --tune alone means), learning_rate, or METHOD.SETTING."""

  trials: int = 8
  """With --tune: values that are tried for each method, the base included."""

  validation: float = 0.2
  """With --tune: fraction of the training examples that no run trains on."""

  budget: Budget = 'steps'
  """What is equal for all methods. With gradients or seconds, cheaper methods
  take more steps than --steps, as many as the most expensive one affords."""

  timing_rounds: int = 5
  """Rounds of timing after training; 0 leaves the timing out."""

  add_seeds: int = 0
  """Train so many further seeds for the comparison in --output."""

  add_methods: Annotated[
    tuple[str, ...], flag(default='none', value='NAME,NAME')
  ] = ()
  """Train these methods too for the comparison in --output."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """Flags of `train` alone."""

  config: Annotated[pathlib.Path | None, flag(default='none', value='PATH')] = (
    None
  )
  """JSON file of these flags; flags of the command line override it."""

  method: Annotated[str, flag('-m', value='NAME')] = 'sam'
  """The method, or the name of the base optimizer to train without one."""

  seed: int = 0
  """Seed of initialization, order of the data and dropout."""

  epochs: Annotated[int | None, flag(default='see --steps', value='INT')] = None
  """Passes over the training examples, instead of --steps."""

  checkpoint_every: int = 50
  """Steps between checkpoints; the last three are stored."""

  resume: bool = False
  """Resume from the last checkpoint in the output directory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
  """Flags of the output."""

  output: Annotated[
    pathlib.Path | None,
    flag('-o', default='a new directory in runs/', value='PATH'),
  ] = None
  """Directory of the output."""

  overwrite: bool = False
  """Replace an earlier output of this command."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageNet:
  """Flags of `--dataset imagenet`."""

  image_size: int = 224
  """Height and width of the images in pixels. The images are in --data-dir, in
  train/CLASS/*.JPEG and val/CLASS/*.JPEG, or converted by `optax-sam
  convert`."""

  input_threads: int = 16
  """Batches that are prepared concurrently."""

  prefetch: int = 16
  """Batches that are prepared in advance, held in memory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Devices:
  """Flags of devices and processes."""

  mesh: Annotated[
    str | None,
    flag(
      default='data=N with all devices; in a single process, one device if '
      'they do not divide the batch',
      value='AXIS=N',
    ),
  ] = None
  """Devices over which each batch is split, as in data=8, or data=4,fsdp=2 if
  parameters and states are also split over groups of two."""

  distributed: bool = False
  """One of several processes that find each other, as on a TPU pod."""

  coordinator: Annotated[
    str | None, flag(default='none', value='HOST:PORT')
  ] = None
  """Address of the first process, where --distributed fails."""

  num_processes: Annotated[int | None, flag(default='one', value='INT')] = None
  """Number of processes that meet at --coordinator."""

  process_id: Annotated[int | None, flag(default='none', value='INT')] = None
  """Index of this process, from 0."""
