"""Flags of the commands, in the groups of the help text."""

import dataclasses
import pathlib
from typing import Annotated, Any, Literal

import msgspec
import tyro

# Ranges. Counts must fit in the integers of JAX, and numbers in float32.
Count = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
CountOrZero = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Size = Annotated[int, msgspec.Meta(ge=1, le=4096)]
SizeOrZero = Annotated[int, msgspec.Meta(ge=0, le=4096)]
Seed = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Fraction = Annotated[float, msgspec.Meta(ge=0, lt=1)]
Positive = Annotated[float, msgspec.Meta(gt=0, le=3.4e38)]
NotNegative = Annotated[float, msgspec.Meta(ge=0, le=3.4e38)]
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
  'look_sam',
  'momentum_sam',
)


def flag(*aliases: str, default: str | None = None, value: str = '') -> Any:
  """Describes a flag: other names, text for the default, placeholder."""
  return tyro.conf.arg(
    aliases=aliases or None,
    help_behavior_hint=f'(default: {default})' if default else None,
    metavar=value or None,
  )


def name(field: str) -> str:
  """Returns the flag of a field."""
  return '--' + field.replace('_', '-')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
  """Flags of the data."""

  # digits, mnist1d, fashion_mnist, cifar10, cifar100, or a path: an .npz file
  # with x_train, y_train, x_test and y_test, a directory of IDX files, or a
  # folder train/CLASS/*.png with test/CLASS/*.png. `train` also takes imagenet.
  dataset: Annotated[str, flag(value='NAME|PATH')] = 'digits'
  # Directory with the files of a named dataset.
  data_dir: Annotated[
    pathlib.Path | None, flag(default='/usr/share/datasets')
  ] = None
  # Number of training examples to use: the first ones, with the same fraction
  # of every class.
  train_examples: Annotated[Count | None, flag(default='all')] = None
  # Fraction of the training labels that are replaced by a wrong one.
  label_noise: Fraction = 0.0
  # Height and width in pixels to which the images of a folder are resized.
  resize: Annotated[Size | None, flag(default='unchanged')] = None
  # Images with more pixels are not decoded: of a folder they are refused, of
  # imagenet skipped.
  max_pixels: Count = 2**26


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
  """Flags of the model and its loss."""

  # cnn (convolutions with batch norm), mlp (dense layers with dropout),
  # resnet18, resnet50, wideresnet28x10, vit_s16, or your own as
  # package.module:Name or file.py:Name.
  model: Annotated[str, flag(value='NAME|MODULE:NAME')] = 'cnn'
  # Rank of low-rank adapters (LoRA), which are then trained alone. The weights
  # of the model, such as those that your own `init` reads, are frozen.
  adapter_rank: Annotated[Count | None, flag(default='none')] = None
  # Dtype of the computation; parameters are always float32. Your own model
  # chooses its own.
  dtype: Dtype = 'float32'
  # cross_entropy of classes, mean_squared_error of numbers, or next_token for
  # sequences of tokens.
  loss: Annotated[str, flag(value='NAME')] = 'cross_entropy'
  # Metric on the test examples, by which methods are compared.
  metric: Annotated[
    str | None, flag(default='the usual one of the loss', value='NAME')
  ] = None
  # Fraction of a training label that is spread over all classes.
  label_smoothing: Fraction = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
  """Flags of the base optimizer and the length of training."""

  # The base optimizer: sgd (with momentum 0.9), adamw, or any other of Optax
  # that needs only a learning rate and numbers, such as lion or muon. Set its
  # arguments with --set base.NAME=VALUE.
  base: Annotated[str, flag('--optimizer', value='NAME')] = 'sgd'
  # Training steps of a run. `train --resume` may raise them.
  steps: Count = 300
  # Examples in a batch.
  batch_size: Count = 100
  # Peak of the cosine schedule.
  learning_rate: Annotated[
    Positive | None, flag('--lr', default='sgd 0.1, adamw 0.003, others 0.001')
  ] = None
  # Fraction of the steps in which the learning rate rises.
  warmup: Fraction = 0.1
  # Weight decay, on kernels only if the optimizer can tell them apart.
  weight_decay: Annotated[
    NotNegative | None, flag(default='sgd 0.0005, adamw 0.05, others 0')
  ] = None
  # Largest norm of the gradient that a method forwards to the base optimizer.
  clip_norm: Annotated[Positive | None, flag(default='none')] = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
  """Flags of the sharpness-aware methods."""

  # Radius of the perturbation, for all methods.
  rho: Annotated[NotNegative | None, flag(default="each method's own")] = None
  # Argument of a method, as in ae_sam.lambda_2=2, or of the base optimizer, as
  # in base.momentum=0.95.
  set: Annotated[
    tuple[str, ...], tyro.conf.UseAppendAction, flag(value='NAME.SETTING=VALUE')
  ] = ()
  # Where a method decides to skip the perturbed gradient: inside of the
  # compiled step (jit), or on the host, between two compiled functions; auto
  # selects the faster one, which is jit for the built-in models.
  execution: Execution = 'auto'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
  """Flags of what is measured."""

  # Evaluations in a run, evenly spaced; at most one a step.
  evaluations: Count = 6
  # Steps between rows of the log.
  log_every: Count = 5
  # Radius of the SAM sharpness, the same for all methods.
  sharpness_radius: Positive = 0.05
  # Number of training examples on which sharpness is measured.
  sharpness_examples: Count = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
  """Flags of `compare` alone."""

  # Methods to compare with the base optimizer, which is always trained.
  methods: Annotated[tuple[str, ...], flag('-m', value='NAME,NAME')] = (
    DEFAULT_METHODS
  )
  # Runs of each method, with seeds 0, 1, ...
  seeds: Size = 3
  # Choose settings of every method on validation examples: radius,
  # learning_rate (--tune alone: both), or METHOD.SETTING.
  tune: Annotated[
    tuple[str, ...] | None, flag(default='no search', value='[NAME ...]')
  ] = None
  # With --tune: values that are tried for each method, the base included.
  trials: Annotated[int, msgspec.Meta(ge=2, le=4096)] = 8
  # With --tune: fraction of the training examples that no run trains on.
  validation: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.2
  # What is equal for all methods. With gradients or seconds, the most expensive
  # method takes --steps steps, and cheaper ones take proportionally more.
  budget: Budget = 'steps'
  # Rounds of timing after training; 0 leaves the timing out.
  timing_rounds: SizeOrZero = 5
  # Number of further seeds to train for the comparison in --output.
  add_seeds: SizeOrZero = 0
  # Methods to add to the comparison in --output.
  add_methods: Annotated[
    tuple[str, ...], flag(default='none', value='NAME,NAME')
  ] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """Flags of `train` alone."""

  # JSON file of these flags; flags of the command line override it.
  config: Annotated[pathlib.Path | None, flag(default='none')] = None
  # The method, or the name of the base optimizer to train without one.
  method: Annotated[str, flag('-m', value='NAME')] = 'sam'
  # Seed of initialization, order of the data and dropout.
  seed: Seed = 0
  # Passes over the training examples, instead of --steps.
  epochs: Annotated[Count | None, flag(default='see --steps')] = None
  # Steps between checkpoints; the last three are stored.
  checkpoint_every: Count = 50
  # Resume from the last checkpoint in --output, with the settings of the run;
  # no other flag is needed. A larger --steps or --epochs prolongs the run, also
  # a finished one: the further steps follow the learning rate of the new
  # length, so it rises again, and the run differs from one that was as long
  # from the start.
  resume: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
  """Flags of the output."""

  # Directory of the output.
  output: Annotated[
    pathlib.Path | None, flag('-o', default='a new directory in runs/')
  ] = None
  # Replace an earlier output of this command.
  overwrite: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageNet:
  """Flags of `--dataset imagenet`."""

  # Height and width of the images in pixels. The images are in --data-dir, in
  # train/CLASS/*.JPEG and val/CLASS/*.JPEG, or converted by `optax-sam
  # convert`.
  image_size: Size = 224
  # Batches that are prepared concurrently.
  input_threads: Size = 16
  # Batches that are prepared in advance, held in memory.
  prefetch: Size = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Devices:
  """Flags of devices and processes."""

  # Devices over which each batch is split, as in data=8, or data=4,fsdp=2 if
  # parameters and states are also split over groups of two. A single process
  # uses one device if all of them do not divide the batch.
  mesh: Annotated[
    str | None, flag(default='data=N with all devices', value='AXIS=N')
  ] = None
  # One of several processes that find each other, as on a TPU pod.
  distributed: bool = False
  # Address of the first process, where --distributed fails.
  coordinator: Annotated[
    str | None, flag(default='none', value='HOST:PORT')
  ] = None
  # Number of processes that meet at --coordinator.
  num_processes: Annotated[Count | None, flag(default='one')] = None
  # Index of this process, from 0.
  process_id: Annotated[CountOrZero | None, flag(default='none')] = None
