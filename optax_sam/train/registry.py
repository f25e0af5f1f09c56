"""The registry of methods: what the trainer and its table know of each.

A new method is one more row; nothing else in the trainer names a method.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import optax

import optax_sam
from optax_sam import validation
from optax_sam.train import epoch_rules
from optax_sam.train.averaging import ValidatedAveraging


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
      'loss' is a term of the loss, under the base optimizer alone, and
      'beside' that a `ValidatedAveraging`.
    base_steps: the setting that says how many steps of the base optimizer one
      step takes; None for one.
    reports: whether `optax_sam.metrics` finds something in its state.
    solution: from the parameters and the state of the optimizer to the
      parameters that the run has found, where they are others than those that
      it trains. What stands beside the optimizer has its own.
  """

  factory: Callable[..., Any]
  gradients: str
  state: str
  paper: str
  skips: bool = False
  uses_gradient: bool = True
  takes_single_examples: bool = False
  defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  place: Literal['before', 'around', 'instead', 'after', 'loss', 'beside'] = (
    'before'
  )
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


def _swad(
  *,
  n_converge: int = 3,
  n_tolerance: int = 6,
  tolerance: float = 0.3,
  validation_share: float = 0.1,
  epochs_per_validation: int = 1,
) -> ValidatedAveraging:
  """Averages the weights of all steps while held-out examples say so.

  They are chosen among the training examples by the seed of the run, with the
  same share of every class, and with wrong labels if there are any. That is the
  price of the method: other methods of a comparison train on these examples
  too. Their number, and how often they are asked, are choices of the trainer.

  Args:
    n_converge: as of `optax_sam.swad`.
    n_tolerance: likewise.
    tolerance: likewise.
    validation_share: share of the training examples that is held out, above 0
      and at most 0.5.
    epochs_per_validation: epochs from one validation to the next, at least 1;
      an epoch passes over the other examples.
  """
  functions = optax_sam.swad(
    n_converge=n_converge, n_tolerance=n_tolerance, tolerance=tolerance
  )
  validation.check_number(
    'validation_share', validation_share, above=0, at_most=0.5
  )
  validation.check_static_integer(
    'epochs_per_validation', epochs_per_validation
  )
  return ValidatedAveraging(functions, validation_share, epochs_per_validation)


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
  'swad': Method(
    factory=_swad,
    gradients='1',
    state='three averages of weights',
    paper='Cha et al., 2021, arXiv 2102.08604',
    place='beside',
    reports=False,
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
