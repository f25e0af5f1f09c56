"""The function `compare`: methods on a model and data of the user."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from rich.console import Console

from optax_sam.train.commands import compare as command
from optax_sam.train.commands import progress
from optax_sam.train.comparison import plan, runs, store
from optax_sam.train.config import checks, configs, flags, names
from optax_sam.train.data import arrays, inputs
from optax_sam.train.loop import objectives, task
from optax_sam.train.models import functions
from optax_sam.train.optimizers import build, registry
from optax_sam.train.reports import results

# Flags of the command that are further arguments.
_OPTIONS = (
  'rho warmup clip_norm label_smoothing evaluations log_every adapter_rank '
  'execution sharpness_radius sharpness_examples timing_rounds overwrite'
)


def compare(
  model: Any,
  train: Any,
  test: Any,
  *,
  validation: Any = None,
  loss: str | objectives.PerExample = 'cross_entropy',
  metric: str | objectives.PerExample | None = None,
  higher_is_better: bool | None = None,
  methods: Sequence[str] | Mapping[str, Any] = flags.DEFAULT_METHODS,
  settings: Mapping[str, Mapping[str, Any]] | None = None,
  base: str | Callable[[Any], optax.GradientTransformation] = 'sgd',
  learning_rate: float | None = None,
  weight_decay: float | None = None,
  steps: int = 300,
  batch_size: int = 100,
  seeds: int = 3,
  tune: bool | str | Sequence[str] | None = None,
  trials: int = 8,
  budget: str = 'steps',
  output: str | pathlib.Path | None = None,
  verbose: bool = True,
  **options: Any,
) -> results.Comparison:
  """Compares sharpness-aware methods on a model and data.

  Every method, and the base optimizer alone, trains the model with the same
  seeds: equal initial parameters, order of examples and schedule of the
  learning rate (linear warm-up, then cosine decay).

  Args:
    model: a Flax linen module, a function `rngs -> nnx.Module`, a function `key
      -> equinox.Module` (or `key -> (module, state)`), or a pair `(init,
      apply)`; see `optax_sam.train.models.functions.from_model`.
    train: training examples: a pair `(inputs, targets)` of arrays, a dict of
      arrays (`inputs` or `x`, `labels`, `targets` or `y`), an iterable of
      examples such as a Grain dataset, or for `next_token` an array of tokens;
      see `optax_sam.train.data.arrays.dataset`.
    test: test examples, which are used for evaluation only.
    validation: validation examples for `tune`, like `train`; or the fraction of
      the training examples that is held out for it [default: 0.2].
    loss: `cross_entropy` of integer labels, `mean_squared_error`, `next_token`
      cross entropy, or a function from outputs and targets of a batch to
      per-example losses (B,).
    metric: `accuracy`, `mean_squared_error`, `token_accuracy`, `loss`, or a
      function like a loss [default: the usual one of the loss].
    higher_is_better: direction of a metric that is a function.
    methods: names of methods (`optax-sam methods` prints them), or a dict from
      names to gradient transformations, which are placed before the base
      optimizer, or to functions from the base optimizer to the complete
      optimizer.
    settings: settings by name of the method, as in `{'sam': {'rho': 0.1}}`.
    base: name of an optimizer of Optax, or a function from the learning rate, a
      schedule, to an optimizer.
    learning_rate: peak learning rate [default: that of `base`].
    weight_decay: weight decay, on kernels only [default: that of `base`].
    steps: training steps of a run.
    batch_size: examples in a batch.
    seeds: runs of each method, with seeds 0, 1, ...
    tune: what to choose for every method on validation examples: `radius`,
      `learning_rate`, METHOD.SETTING, or several; True for the first two, None
      for nothing.
    trials: values that are tried for each method, with `tune`.
    budget: what is equal for all methods: `steps`, `gradients` or `seconds`.
    output: directory of the report and of finished runs; None for none.
    verbose: whether to show the progress.
    **options: flags of `optax-sam compare`: `adapter_rank`, `rho`, `warmup`,
      `clip_norm`, `label_smoothing`, `evaluations`, `log_every`, `execution`,
      `sharpness_radius`, `sharpness_examples`, `timing_rounds`, `overwrite`.

  Returns:
    The comparison. After Ctrl-C it has the finished runs.

  Raises:
    ValueError: if an argument is invalid; in one line, before any training.
  """
  try:
    own = functions.from_model(model)
    objective = objectives.build(
      loss,
      metric,
      higher_is_better=higher_is_better,
      label_smoothing=options.get('label_smoothing', 0.0),
    )
    split = isinstance(validation, float | np.floating)
    examples = None if split else validation
    dataset = arrays.dataset(train, test, examples, loss=objective.names[0])
    if isinstance(tune, bool):
      tune = () if tune else None
    given = _methods(methods, base if isinstance(base, str) else 'sgd')
    config = _config(
      {
        names.find('argument', x, _OPTIONS.split()): value
        for x, value in options.items()
      }
      | ({'validation': float(validation)} if split else {})
      | {
        'model': own.name,
        'loss': objective.names[0] or 'function',
        'metric': objective.measured.name,
        'methods': tuple(given),
        'set': tuple(
          f'{name}.{key}={_plain(value)!r}'
          for name, values in (settings or {}).items()
          for key, value in values.items()
        ),
        'base': base,
        'learning_rate': learning_rate,
        'weight_decay': weight_decay,
        'steps': steps,
        'batch_size': batch_size,
        'seeds': seeds,
        'tune': (tune,) if isinstance(tune, str) else tune,
        'trials': trials,
        'budget': budget,
        'output': None if output is None else pathlib.Path(output),
      },
      len(dataset.train['labels']),
    )
    problem = task.create(own, dataset, config.batch_size, objective)
    console = Console(quiet=not verbose)
    text = f'optax_sam.train.compare({config.model}, ...)'
    bases: Any = {} if isinstance(base, str) else {config.base: base}
    own_methods = given if isinstance(methods, Mapping) else {}
    found = _registered(own_methods, problem, config.base)
    with registry.added(found, bases):
      if config.output is not None:
        return command.run(config, console, text, problem)
      chosen, stored = plan.method_settings(config), store.Store()
      with progress.Reporter(console) as reporter:
        return runs.measure(config, chosen, reporter, text, problem, stored)
  except ValueError as error:
    # Checks that the command shares name flags.
    changed = re.sub(
      r'(?<!\S)--([a-z-]+)', lambda x: x[1].replace('-', '_'), str(error)
    )
    raise ValueError(changed) from error


def _config(given: dict[str, Any], examples: int) -> configs.CompareConfig:
  """Returns the checked configuration."""
  given = {name: _plain(value) for name, value in given.items()}
  # Names that only an own comparison has are replaced by known ones.
  known: dict[str, Any] = {'loss': 'cross_entropy', 'metric': None}
  known |= {'dataset': 'digits', 'model': 'mlp', 'methods': ()}
  own_base = not isinstance(given['base'], str)
  if own_base:
    wrong = ''
    if not callable(given['base']):
      kind = type(given['base']).__name__
      wrong = f'base must be a name such as sgd, or a function, not {kind}'
    elif given['learning_rate'] is None:
      wrong = 'learning_rate must be given if base is a function; write 0.1'
    elif given['weight_decay'] is not None:
      wrong = f'weight_decay={given["weight_decay"]} is not used if base is a '
      wrong += 'function; set it there'
    if wrong:
      raise ValueError(wrong)
    known['base'] = 'sgd'
    given |= {'base': 'base', 'weight_decay': 0.0}
  given.setdefault('sharpness_examples', min(256, examples))
  config = configs.CompareConfig(**given, dataset='own data')
  checked = dataclasses.replace(config, **known)
  checks.validate(checked)
  inputs.check_count('batch-size', config.batch_size, examples)
  inputs.check_count('sharpness-examples', config.sharpness_examples, examples)
  base = config.base if own_base else checks.canonical(checked).base
  return dataclasses.replace(config, base=base)


def _plain(value: Any) -> Any:
  """Returns a number of Python for a scalar of NumPy or JAX."""
  is_scalar = isinstance(value, np.generic | jax.Array) and not value.shape
  return value.item() if is_scalar else value


def _methods(given: Any, base: str) -> dict[str, Any]:
  """Returns the methods by name, checked; None for names without methods."""
  if isinstance(given, str):
    msg = f'methods must be a tuple of names; write methods=({given!r},)'
    raise ValueError(msg)
  if not isinstance(given, Mapping):
    find = build.canonical_name
    return dict.fromkeys(find(name, base, 'methods:') for name in given)
  for name in given:
    # It is part of the names of files.
    pattern = r'(?=.{1,40}$)\w[\w.+-]*( [\w.+-]+)*'
    if not (isinstance(name, str) and re.fullmatch(pattern, name)):
      msg = (
        f'methods: the name {name!r} must begin with a letter or digit and '
        f'have at most 40 letters, digits, single spaces and any of _ . + -'
      )
      raise ValueError(msg)
  return dict(given)


def _registered(
  given: Mapping[str, Any], problem: task.Task, base: str
) -> dict[str, registry.Method]:
  """Returns the methods that are not of the catalog, each tried once."""
  found = {}
  params: Any = problem.init(jax.random.key(0))[0]
  for name, value in given.items():
    if name == base:
      msg = f'methods: {name!r} is the base optimizer; choose another name'
      raise ValueError(msg)
    tx = value
    if callable(value) and not isinstance(tx, optax.GradientTransformation):
      tx = value(optax.sgd(0.1))
    if not isinstance(tx, optax.GradientTransformation):
      msg = (
        f'methods: {name!r} must be a gradient transformation, such as '
        f'optax_sam.sam(rho=0.05), or a function that returns an optimizer '
        f'from the base optimizer, not {type(tx).__name__}'
      )
      raise ValueError(msg)
    found[name] = registry.own(name, value, tx.init(params))
  return found
