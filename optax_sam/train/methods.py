"""The registry of methods: what the trainer and its table know of each.

A new method is one more row; nothing else in the trainer names a method.
"""

import ast
import dataclasses
import functools
import inspect
import numbers
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import optax

import optax_sam
from optax_sam import validation
from optax_sam.train import config as config_lib
from optax_sam.train import epoch_rules, optimizers

# Arguments that the trainer fills or that describe how it runs, rather than
# what the method is.
_NOT_SETTABLE = frozenset(
  {
    'base',
    'batch_like',
    'num_data',
    'total_steps',
    'key',
    'refresh_every',
    'mask',
    'axis_name',
    'sync_ascent',
    'scaled',
  }
)


@dataclasses.dataclass(frozen=True)
class Method:
  """One row of the registry.

  Attributes:
    factory: the public function that builds it. Arguments
      named `total_steps`, `refresh_every`, `key`, `base`, `batch_like` and
      `num_data` are filled by the trainer, and `learning_rate` with a schedule.
    gradients: gradients per step, s the share of steps that ascend.
    state: what it keeps beside a step counter.
    paper: where it was published.
    skips: whether some of its steps take no second gradient.
    uses_gradient: whether it reads the clean gradient of the whole batch.
    takes_single_examples: whether it differentiates the losses of examples one
      by one, for which batch norm must use its running statistics.
    defaults: the trainer's values of arguments that have no default; a value
      may be a rule that follows the training accuracy.
    place: where it stands. 'before' the base optimizer and 'after' it are the
      first and the last element of a chain; 'around' it takes `base`, and its
      `learning_rate` is that of the base; 'instead' of it stands an optimizer
      of its own, whose `learning_rate` is a setting, the highest of the run.
      'loss' is a term of the loss, under the base optimizer alone.
    base_steps: the setting that says how many steps of the base optimizer one
      step takes; None for one.
    reports: whether `optax_sam.metrics` finds something in its state.
    solution: from the parameters and the state of the optimizer to the
      parameters that the run has found, where they are others than those that
      it trains.
  """

  factory: Callable[..., Any]
  gradients: str
  state: str
  paper: str
  skips: bool = False
  uses_gradient: bool = True
  takes_single_examples: bool = False
  defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  place: Literal['before', 'around', 'instead', 'after', 'loss'] = 'before'
  base_steps: str | None = None
  reports: bool = True
  solution: Callable[[optax.Params, Any], optax.Params] | None = None


# The authors' rule. What it leaves open, and where their programs differ:
# - It doesn't say how training accuracy is measured. One program passes over
#   the training set after each epoch, another averages over the batches of the
#   epoch as it trains on them, both in training mode. Here: after the epoch, in
#   evaluation mode; see the class for why.
# - They round k down; a fraction of the batch is rounded to the nearest here.
# - They also halve the learning rate when k falls at 99.5 %, which the rule
#   doesn't mention; here all methods of a comparison share one schedule.
_SHARE_OF_LARGEST_LOSSES = epoch_rules.ByTrainingAccuracy(
  1.0, ((0.8, 1 / 2), (0.9, 1 / 4), (0.95, 1 / 8), (0.995, 1 / 16))
)


def _swa(
  *, start: float = 0.75, total_steps: int, refresh_every: int
) -> optax.GradientTransformationExtraArgs:
  """Averages the weights once an epoch in the last part of a run.

  The authors average over about the last half of theirs, at a high learning
  rate; under the schedule that all methods of a comparison share, those of the
  last quarter are near enough to one another.

  Args:
    start: share of the run after which the first weights enter.
    total_steps: length of the run.
    refresh_every: steps of an epoch.
  """
  validation.check_number('start', start, at_least=0, at_most=1)
  first = max(1, round(start * total_steps))
  return optax_sam.swa(first, every=refresh_every)


METHODS: dict[str, Method] = {
  'sam': Method(
    factory=optax_sam.sam,
    gradients='2',
    state='none',
    paper='Foret et al., 2021, arXiv 2010.01412',
  ),
  'asam': Method(
    factory=optax_sam.asam,
    gradients='2',
    state='none',
    paper='Kwon et al., 2021, arXiv 2102.11600',
  ),
  'sam_on': Method(
    factory=functools.partial(
      optax_sam.sam, rho=0.5, mask=optax_sam.norm_layers_only
    ),
    gradients='2',
    state='none',
    paper='Mueller et al., 2023, arXiv 2306.04226',
  ),
  'friendly_sam': Method(
    factory=optax_sam.friendly_sam,
    gradients='2',
    state='average of gradients',
    paper='Li et al., 2024, arXiv 2403.12350',
  ),
  'gsam': Method(
    factory=optax_sam.gsam,
    gradients='2',
    state='none',
    paper='Zhuang et al., 2022, arXiv 2203.08065',
  ),
  'gradient_norm_penalty': Method(
    factory=optax_sam.gradient_norm_penalty,
    gradients='2',
    state='none',
    paper='Zhao et al., 2022, arXiv 2202.03599',
  ),
  'wsam': Method(
    factory=optax_sam.wsam,
    gradients='2',
    state='none',
    paper='Yue et al., 2023, arXiv 2305.15817',
  ),
  'wsam_decoupled': Method(
    factory=optax_sam.wsam_decoupled,
    gradients='2',
    state='none',
    paper='Yue et al., 2023, arXiv 2305.15817',
    place='around',
  ),
  'lookbehind': Method(
    factory=optax_sam.lookbehind,
    gradients='1 + steps',
    state='none',
    paper='Mordido et al., 2024, arXiv 2307.16704',
    place='around',
    base_steps='steps',
  ),
  'sampa': Method(
    factory=optax_sam.sampa,
    gradients='2, side by side',
    state='one direction, one batch',
    paper='Xie et al., 2024, arXiv 2410.10683',
    uses_gradient=False,
    place='around',
  ),
  'b_sam': Method(
    factory=optax_sam.b_sam,
    gradients='2',
    state='two moments, PRNG key',
    paper='Moellenhoff, Khan, 2023, arXiv 2210.01620',
    uses_gradient=False,
    place='instead',
  ),
  'entropy_sgd': Method(
    factory=optax_sam.entropy_sgd,
    gradients='1',
    state='two points, momentum, PRNG key',
    paper='Chaudhari et al., 2017, arXiv 1611.01838',
    place='instead',
    reports=False,
    solution=optax_sam.outer_params,
  ),
  'fisher_sam': Method(
    factory=optax_sam.fisher_sam,
    gradients='2',
    state='none',
    paper='Kim et al., 2022, arXiv 2206.04920',
  ),
  'unnormalized_sam': Method(
    factory=optax_sam.unnormalized_sam,
    gradients='2',
    state='none',
    paper='Andriushchenko, Flammarion, 2022, arXiv 2206.06232',
    defaults={'rho': 0.05},
  ),
  'le_sam': Method(
    factory=optax_sam.le_sam,
    gradients='2',
    state='none',
    paper='Wang et al., 2026, arXiv 2605.10183',
  ),
  'cr_sam': Method(
    factory=optax_sam.cr_sam,
    gradients='3',
    state='none',
    paper='Wu et al., 2024, arXiv 2312.13555',
  ),
  'eigen_sam': Method(
    factory=optax_sam.eigen_sam,
    gradients='2',
    state='one direction',
    paper='Luo et al., 2024, arXiv 2501.12666',
  ),
  'frob_sam': Method(
    factory=optax_sam.frob_sam,
    gradients='1 + num_samples',
    state='PRNG key',
    paper='Tahmasebi et al., 2024, arXiv 2406.03682',
  ),
  'sparse_sam_fisher': Method(
    factory=optax_sam.sparse_sam_fisher,
    gradients='2',
    state='mask',
    paper='Mi et al., 2022, arXiv 2210.05177',
    takes_single_examples=True,
  ),
  'sparse_sam_dynamic': Method(
    factory=optax_sam.sparse_sam_dynamic,
    gradients='2',
    state='mask, PRNG key',
    paper='Mi et al., 2022, arXiv 2210.05177',
  ),
  'z_sharp': Method(
    factory=optax_sam.z_sharp,
    gradients='2',
    state='none',
    paper='Yun, 2025, arXiv 2505.02369',
  ),
  'async_sam': Method(
    factory=optax_sam.async_sam,
    gradients='2, side by side',
    state='one direction',
    paper='Jo et al., 2025, arXiv 2503.11147',
  ),
  'momentum_sam': Method(
    factory=optax_sam.momentum_sam,
    gradients='1',
    state='one direction',
    paper='Becker et al., 2024, arXiv 2401.12033',
    uses_gradient=False,
  ),
  'lpf_sgd': Method(
    factory=optax_sam.lpf_sgd,
    gradients='1',
    state='PRNG key',
    paper='Bisla et al., 2022, arXiv 2201.08025',
    uses_gradient=False,
  ),
  'anti_pgd': Method(
    factory=optax_sam.anti_pgd,
    gradients='1',
    state='PRNG key',
    paper='Orvieto et al., 2022, arXiv 2202.02831',
    defaults={'sigma': 0.01},
    place='after',
    reports=False,
    solution=optax_sam.without_noise,
  ),
  'swa': Method(
    factory=_swa,
    gradients='1',
    state='average of weights',
    paper='Izmailov et al., 2018, arXiv 1803.05407',
    place='after',
    reports=False,
    solution=optax_sam.averaged_params,
  ),
  'ss_sam': Method(
    factory=optax_sam.ss_sam,
    gradients='1 + s',
    state='PRNG key',
    paper='Zhao et al., 2022, arXiv 2203.09962',
    skips=True,
  ),
  'look_sam': Method(
    factory=optax_sam.look_sam,
    gradients='1 + 1/period',
    state='one direction',
    paper='Liu et al., 2022, arXiv 2203.02714',
    skips=True,
  ),
  'look_layer_sam': Method(
    factory=optax_sam.look_layer_sam,
    gradients='1 + 1/period',
    state='one direction',
    paper='Liu et al., 2022, arXiv 2203.02714',
    skips=True,
  ),
  'ae_sam': Method(
    factory=optax_sam.ae_sam,
    gradients='1 + s',
    state='two moments, scalars',
    paper='Jiang et al., 2023, arXiv 2304.14647',
    skips=True,
  ),
  'ae_look_sam': Method(
    factory=optax_sam.ae_look_sam,
    gradients='1 + s',
    state='two moments, one direction',
    paper='Jiang et al., 2023, arXiv 2304.14647',
    skips=True,
  ),
  'k_sam': Method(
    factory=optax_sam.k_sam,
    gradients='1/3 + ascent + descent',
    state='none',
    paper='Ni et al., 2022, arXiv 2210.12864',
    uses_gradient=False,
    defaults={'ascent': 1 / 3, 'descent': 1 / 3},
  ),
  'esam': Method(
    factory=optax_sam.esam,
    gradients='4/3 + gamma',
    state='PRNG key',
    paper='Du et al., 2022, arXiv 2110.03141',
  ),
  'ordered_sgd': Method(
    factory=optax_sam.ordered_sgd,
    gradients='1/3 + k',
    state='none',
    paper='Kawaguchi, Lu, 2020, arXiv 1907.04371',
    uses_gradient=False,
    defaults={'k': _SHARE_OF_LARGEST_LOSSES},
  ),
  'subset_sam': Method(
    factory=optax_sam.subset_sam,
    gradients='1 + fraction',
    state='PRNG key',
    paper='Bahri et al., 2022, arXiv 2110.08529',
    uses_gradient=False,
  ),
  'm_sam': Method(
    factory=optax_sam.m_sam,
    gradients='2',
    state='none',
    paper='Foret et al., 2021, arXiv 2010.01412',
    uses_gradient=False,
    defaults={'micro_batch_size': 32},
  ),
  'saf': Method(
    factory=optax_sam.saf_loss,
    gradients='1',
    state='logits of all examples',
    paper='Du et al., 2022, arXiv 2205.14083',
    place='loss',
    reports=False,
  ),
  'mesa': Method(
    factory=optax_sam.mesa_loss,
    gradients='4/3',
    state='average of weights',
    paper='Du et al., 2022, arXiv 2205.14083',
    place='loss',
    reports=False,
  ),
}


def settable(name: str) -> tuple[str, ...]:
  """Returns the names that `--set NAME.setting=value` accepts."""
  parameters = inspect.signature(METHODS[name].factory).parameters
  filled = set(_NOT_SETTABLE)
  if METHODS[name].place != 'instead':
    filled.add('learning_rate')
  return tuple(key for key in parameters if key not in filled)


def check_names(names: Iterable[str], base: str) -> None:
  """Raises a ValueError if a name is neither a method nor the base."""
  for name in names:
    if name != base and name not in METHODS:
      allowed = ', '.join((base, *METHODS))
      msg = f'method {name!r} is unknown; choose among {allowed}'
      raise ValueError(msg)


def parse_settings(
  assignments: Iterable[str], names: Iterable[str]
) -> dict[str, dict[str, Any]]:
  """Reads assignments such as `ae_sam.lambda_2=2`.

  Args:
    assignments: texts of the form METHOD.SETTING=VALUE.
    names: the methods of this run; a setting of another one is an error.

  Returns:
    For each method the settings that were given, perhaps none.

  Raises:
    ValueError: if anything in an assignment is unknown, naming what is known.
  """
  parsed: dict[str, dict[str, Any]] = {
    name: {} for name in names if name in METHODS
  }
  for text in assignments:
    target, equals, value = text.partition('=')
    name, dot, setting = target.strip().partition('.')
    if not (equals and dot):
      msg = f'--set {text!r} must read METHOD.SETTING=VALUE'
      raise ValueError(msg)
    if name not in parsed:
      allowed = ', '.join(parsed) or 'none, the base optimizer has no settings'
      msg = f'--set {text}: {name!r} is no method of this run ({allowed})'
      raise ValueError(msg)
    allowed = settable(name)
    if setting not in allowed:
      msg = (
        f'--set {text}: {name} has no setting {setting!r}; '
        f'choose among {", ".join(allowed)}'
      )
      raise ValueError(msg)
    parsed[name][setting] = _parse_value(text, name, setting, value.strip())
  return parsed


def complete_settings(
  name: str, given: Mapping[str, Any], rho: float | None
) -> dict[str, Any]:
  """Returns every setting of a method: given ones, --rho, then defaults."""
  if name not in METHODS:
    return {}
  method = METHODS[name]
  parameters = inspect.signature(method.factory).parameters
  chosen = {key: parameters[key].default for key in settable(name)}
  chosen.update(method.defaults)
  if rho is not None and 'rho' in chosen:
    chosen['rho'] = rho
  chosen.update(given)
  return {k: v for k, v in chosen.items() if v is not inspect.Parameter.empty}


def build(
  name: str,
  settings: Mapping[str, Any],
  config: config_lib.Experiment,
  *,
  seed: int,
  epoch_steps: int = 1,
  accuracy: float = 0.0,
  batch_like: Any = None,
  num_data: int = 1,
) -> optax.GradientTransformation:
  """Builds a whole optimizer; any other name is the base alone.

  Args:
    name: a name in the registry, or that of the base optimizer.
    settings: as `complete_settings` returns them.
    config: of the base optimizer, its learning rate and the length of training.
    seed: for methods that draw; it enters the state in `init` only.
    epoch_steps: for methods that renew something once an epoch.
    accuracy: the training accuracy, for settings that follow it.
    batch_like: shapes and dtypes of a batch, for methods that keep one.
    num_data: number of training examples, for methods that weigh by it.
  """
  if name not in METHODS:
    return optax.chain(optax.identity(), optimizers.base_optimizer(config))
  method = METHODS[name]
  base_steps = settings[method.base_steps] if method.base_steps else 1
  base = optimizers.base_optimizer(config, base_steps)
  filled = {
    'total_steps': config.steps,
    'refresh_every': epoch_steps,
    'key': seed,
    'base': base,
    'batch_like': batch_like,
    'num_data': num_data,
  }
  parameters = inspect.signature(method.factory).parameters
  arguments = {k: v for k, v in filled.items() if k in parameters}
  arguments |= {**settings, **epoch_rules.following(settings, accuracy)}
  if 'learning_rate' in parameters:
    highest = settings.get('learning_rate')
    arguments['learning_rate'] = optimizers.schedule(config, highest)
  try:
    built = method.factory(**arguments)
  except (TypeError, ValueError) as error:
    msg = f'{name}: {error}'
    raise ValueError(msg) from error
  if method.place == 'loss':
    built = optax.identity()
  if method.place in ('before', 'loss'):
    return optax.chain(built, base)
  return optax.chain(base, built) if method.place == 'after' else built


def term(
  name: str, settings: Mapping[str, Any]
) -> optax_sam.SafLoss | optax_sam.MesaLoss | None:
  """Returns the term that a method adds to the loss, if it is one."""
  if name not in METHODS or METHODS[name].place != 'loss':
    return None
  return METHODS[name].factory(**settings)


def skips(name: str) -> bool:
  """Whether some steps of a method take no second gradient."""
  return name in METHODS and METHODS[name].skips


def reports(name: str) -> bool:
  """Whether there are metrics in the state of a method."""
  return name in METHODS and METHODS[name].reports


def uses_gradient(name: str) -> bool:
  """Whether a method, or the base optimizer, reads the clean gradient."""
  return name not in METHODS or METHODS[name].uses_gradient


def solution(
  name: str,
) -> Callable[[optax.Params, Any], optax.Params] | None:
  """Returns what reads the parameters that a run has found; None for its own.

  From the parameters that it trains, and the state of its optimizer.
  """
  return METHODS[name].solution if name in METHODS else None


def takes_single_examples(name: str) -> bool:
  """Whether a method differentiates the losses of examples one by one."""
  return name in METHODS and METHODS[name].takes_single_examples


def _parse_value(text: str, name: str, setting: str, value: str) -> Any:
  try:
    parsed = ast.literal_eval(value)
  except (ValueError, SyntaxError):
    parsed = value
  default = complete_settings(name, {}, None).get(setting)
  number = isinstance(default, numbers.Real) and not isinstance(default, bool)
  if number and (
    isinstance(parsed, bool) or not isinstance(parsed, numbers.Real)
  ):
    msg = f'--set {text}: {setting} must be a number, not {value!r}'
    raise ValueError(msg)
  if isinstance(default, bool) and not isinstance(parsed, bool):
    msg = f'--set {text}: {setting} must be True or False, not {value!r}'
    raise ValueError(msg)
  return parsed
