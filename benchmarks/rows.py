"""The rows of the table of speed: BASELINES, and every method by group."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import optax

import optax_sam
from benchmarks import steps, term_steps
from benchmarks.problems import Problem

BASELINES = 'Baselines'

_THIRD = 1 / 3
# No mask is renewed while the steps are timed; what that costs is measured by
# `benchmarks.scaling`.
_NEVER = 1_000_000


@dataclasses.dataclass(frozen=True)
class Row:
  """One row of the table.

  Attributes:
    name: what it is called there.
    group: heading that it stands under.
    build: from a problem and the number of steps to the way to take them.
    gradients: gradients that a step should cost, in full ones; None where
      that depends on the number of second gradients taken.
    counterpart: the row of another framework to compare its overhead with.
    share: share of second gradients that the row's name promises.
  """

  name: str
  group: str
  build: Callable[[Problem, int], steps.Steps]
  gradients: float | None = None
  counterpart: str | None = None
  share: float | None = None


def _method(
  name: str,
  group: str,
  gradients: float | None = 2.0,
  *,
  label: str | None = None,
  counterpart: str | None = None,
  share: float | None = None,
  reports_loss: bool = True,
  needs_length: bool = False,
  place: str = 'before',
  needs_batch: bool = False,
  **settings: Any,
) -> Row:
  def build(problem: Problem, total_steps: int) -> steps.Steps:
    given = dict(settings)
    if needs_length:
      given['total_steps'] = total_steps
    if needs_batch:
      given['batch_like'] = problem.batches[0]
    base = steps.base_optimizer()
    with warnings.catch_warnings():
      # That no step ascends is what a row measures.
      warnings.filterwarnings('ignore', 'lambda_', UserWarning)
      held = [base] if place == 'around' else []
      method = getattr(optax_sam, name)(*held, **given)
    if place in ('before', 'after'):
      both = [method, base] if place == 'before' else [base, method]
      method = optax.chain(*both)
    return steps.in_one_program(problem, method, reports_loss=reports_loss)

  return Row(label or name, group, build, gradients, counterpart, share)


def _sgd(problem: Problem, total_steps: int) -> steps.Steps:
  del total_steps
  return steps.in_one_program(problem, steps.base_optimizer())


def _swad(problem: Problem, total_steps: int) -> steps.Steps:
  """Without validations, which are no part of a step."""
  del total_steps
  averaging = optax_sam.swad()

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    after = optax.apply_updates(params, updates)
    return updates, averaging.accumulate(state, after)

  behind = optax.GradientTransformation(averaging.init, update)
  both = optax.chain(steps.base_optimizer(), behind)
  return steps.in_one_program(problem, both)


def rows() -> list[Row]:
  """Returns all rows, SGD first."""
  every, some = 'Every step', 'Some steps'
  examples, around = 'Some examples', 'Around the base optimizer'
  terms, behind = 'Terms of the loss', 'Behind the base optimizer'
  edge = 1e9  # of a threshold that is always or never reached
  return [
    Row('SGD', BASELINES, _sgd, 1.0),
    Row('SAM by hand', BASELINES, lambda p, _: steps.sam_by_hand(p), 2.0),
    Row(
      'optax.contrib.sam', BASELINES, lambda p, _: steps.sam_of_optax(p), 2.0
    ),
    _method('sam', every, counterpart='SAM'),
    _method('asam', every),
    _method('friendly_sam', every, counterpart='FriendlySAM'),
    _method('gsam', every, counterpart='GSAM'),
    _method('gradient_norm_penalty', every),
    _method('wsam', every),
    _method('fisher_sam', every),
    _method('unnormalized_sam', every, rho=0.05),
    _method('sparse_sam_fisher', every, num_samples=8, refresh_every=_NEVER),
    _method(
      'sparse_sam_dynamic',
      every,
      refresh_every=_NEVER,
      key=0,
      needs_length=True,
    ),
    _method('le_sam', every),
    _method('cr_sam', every, 3.0),
    _method('frob_sam', every, 3.0, key=0),
    _method('eigen_sam', every, refresh_every=_NEVER, key=0),
    _method('z_sharp', every),
    _method('async_sam', every),
    _method(
      'momentum_sam',
      every,
      1.0,
      label='momentum_sam, no loss asked for',
      reports_loss=False,
    ),
    _method('momentum_sam', every, 1 + _THIRD),
    _method('lpf_sgd', every, 1 + _THIRD, needs_length=True, key=0),
    _method('m_sam', every, micro_batch_size=12),
    _method('ss_sam', some, None, key=0),
    *[
      _method(
        'ss_sam',
        some,
        1.0 + share,
        label=f'ss_sam, {name}',
        share=share,
        key=0,
        probability=probability,
      )
      for name, share, probability in (
        # XLA would drop the second pass of a probability of 0.
        ('skipped', 0.0, 1e-12),
        ('full', 1.0, 1.0),
      )
    ],
    _method('look_sam', some, 1.2, counterpart='LookSAM'),
    # Its first step is full, and none of those that count.
    _method('look_sam', some, 1.0, label='look_sam, skipped', period=_NEVER),
    _method('look_sam', some, 2.0, label='look_sam, full', share=1.0, period=1),
    _method('look_layer_sam', some, 1.2),
    _method('ae_sam', some, None, needs_length=True),
    _method('ae_look_sam', some, None, needs_length=True),
    _method(
      'ae_sam',
      some,
      1.0,
      label='ae_sam, skipped',
      share=0.0,
      needs_length=True,
      lambda_1=edge,
      lambda_2=edge,
    ),
    _method(
      'ae_sam',
      some,
      2.0,
      label='ae_sam, full',
      share=1.0,
      needs_length=True,
      lambda_1=-edge,
      lambda_2=-edge,
    ),
    _method(
      'k_sam',
      examples,
      1.0,
      label='k_sam, a third each',
      ascent=_THIRD,
      descent=_THIRD,
    ),
    _method('esam', examples, 4 / 3 + 0.5, key=0),
    _method('ordered_sgd', examples, 1 / 3 + 0.5, k=0.5),
    _method(
      'subset_sam',
      examples,
      1.25,
      label='subset_sam, no loss asked for',
      reports_loss=False,
    ),
    _method('subset_sam', examples, 1.25 + 1 / 3),
    _method('wsam_decoupled', around, place='around', learning_rate=0.01),
    _method('lookbehind', around, 3.0, place='around'),
    # The loss asked for is no other than that of its first gradient's batch.
    _method('sampa', around, 2 + _THIRD, place='around', needs_batch=True),
    _method(
      'b_sam', around, 2 + _THIRD, place='instead', num_data=50_000, key=0
    ),
    _method('entropy_sgd', around, 1.0, place='instead', key=0),
    _method('anti_pgd', behind, 1.0, place='after', sigma=0.01, key=0),
    _method('swa', behind, 1.0, place='after', start=1, every=1),
    Row('swad', behind, _swad, 1.0),
    Row('saf_loss', terms, lambda p, _: term_steps.with_saf(p), 1.0),
    Row('mesa_loss', terms, lambda p, _: term_steps.with_mesa(p), 1 + _THIRD),
  ]
