"""The variants: the base optimizer, methods, and their controls."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import optax

import optax_sam
from benchmarks.evidence.problems import PARTS
from optax_sam import perturbations

BASE, SAM = 'base', 'sam'

_HALF, _THIRD, _QUARTER, _EIGHTH = 1 / 2, 1 / 3, 1 / 4, 1 / 8


@dataclasses.dataclass(frozen=True)
class Variant:
  """A method with its settings.

  Attributes:
    title: name on the page.
    factory: maps a radius and settings to the transformation; None for the base
      optimizer alone.
    gradients: cost of a step in full gradients, from the fraction of steps with
      a perturbed gradient; None if the operations of a step say it.
    settings: settings that differ from the defaults of the factory.
    radius: where the search for the radius starts, relative to SAM's.
    parts: length of a run; that of the base optimizer is `PARTS`.
    batch_fraction: fraction of each batch that it uses.
    follows: the variant whose fraction of perturbed gradients is its
      probability.
    takes_per_example_losses: whether it differentiates per-example losses.
    in_short: whether it is part of the frontier, which all problems have.
    needs_norms: whether it is only for networks with normalization layers.
  """

  title: str
  factory: Callable[..., optax.GradientTransformation] | None = None
  gradients: Callable[[float], float] | None = lambda fraction: 1 + fraction
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  radius: float = 1.0
  parts: int = PARTS
  batch_fraction: float = 1.0
  follows: str | None = None
  takes_per_example_losses: bool = False
  in_short: bool = False
  needs_norms: bool = False

  def build(
    self, rho: Any, *, probability: float, **given: Any
  ) -> optax.GradientTransformation:
    """Returns the transformation before the base optimizer.

    Args:
      rho: the radius.
      probability: fraction of perturbed gradients of the variant `follows`.
      **given: further arguments, of which the factory takes some.
    """
    if self.factory is None:
      return optax.identity()
    wanted = inspect.signature(self.factory).parameters
    arguments = {k: v for k, v in given.items() if k in wanted}
    if self.follows is not None:
      arguments['probability'] = probability
    return self.factory(rho, **(arguments | self.settings))


def _sam_along_average(rho: Any) -> optax.GradientTransformation:
  """SAM along the moving average of the gradient, which F-SAM subtracts."""
  return optax_sam.sharpness_aware(
    optax.chain(
      optax.ema(0.9, debias=False), perturbations.scale_to_radius(rho)
    )
  )


def _every_2nd(rho: Any) -> optax.GradientTransformation:
  return optax_sam.sharpness_aware(
    perturbations.scale_to_radius(rho), policy=optax_sam.policies.every(2)
  )


def late(share: float) -> Callable[..., optax.GradientTransformation]:
  """Returns SAM in the last share of the steps, of a number known at run time.

  The steps of a run are an argument of its compiled step.
  """

  def method(rho: Any, *, total_steps: Any) -> optax.GradientTransformation:
    start = (total_steps * (1 - share)).astype('int32')
    return optax_sam.sharpness_aware(
      perturbations.scale_to_radius(rho),
      policy=optax_sam.policies.after(start, optax_sam.policies.always()),
    )

  return method


def _norms(rho: Any, fraction: float = 1.0) -> Any:
  return optax_sam.sparse_sam_layers(
    rho, layers=optax_sam.norm_layers_only, fraction=fraction
  )


def _sparse(how: str, sparsity: float) -> Variant:
  fisher = how == 'Fisher'
  factory = (
    optax_sam.sparse_sam_fisher if fisher else optax_sam.sparse_sam_dynamic
  )
  return Variant(
    f'Sparse SAM, {how}, {sparsity:.0%}'.replace('%', ' %'),
    factory,
    settings={'sparsity': sparsity},
    takes_per_example_losses=fisher,
    in_short=sparsity == 0.5,
  )


def _k_sam(fraction: float, title: str) -> Variant:
  return Variant(
    f'K-SAM, {title} each',
    optax_sam.k_sam,
    lambda _: 1 / 3 + 2 * fraction,
    settings={'ascent': fraction, 'descent': fraction},
  )


def _random_sam(fraction: float, title: str) -> Variant:
  return Variant(
    f'SAM on a random {title}',
    optax_sam.sam,
    lambda _: 2 * fraction,
    batch_fraction=fraction,
  )


VARIANTS: dict[str, Variant] = {
  BASE: Variant('base', in_short=True),
  SAM: Variant('SAM', optax_sam.sam, in_short=True),
  'base_longer': Variant(
    'base, 1.25 times the steps', parts=5 * PARTS // 4, in_short=True
  ),
  'base_twice': Variant(
    'base, twice the steps', parts=2 * PARTS, in_short=True
  ),
  'friendly_sam': Variant('F-SAM', optax_sam.friendly_sam, in_short=True),
  'ae_sam': Variant('AE-SAM', optax_sam.ae_sam, in_short=True),
  'look_sam_5': Variant(
    'LookSAM, every 5th', optax_sam.look_sam, in_short=True
  ),
  'late_sam': Variant('SAM, last fifth of the steps', late(0.2), in_short=True),
  'layers': Variant(
    'SAM on the last half of the layers',
    optax_sam.sparse_sam_layers,
    None,
    in_short=True,
  ),
  'quarter': Variant(
    'SAM on a quarter of the batch',
    optax_sam.subset_sam,
    None,
    in_short=True,
  ),
  'layers_quarter': Variant(
    'the last half of the layers, a quarter of the batch',
    optax_sam.sparse_sam_layers,
    None,
    settings={'fraction': _QUARTER},
    in_short=True,
  ),
  'norms': Variant(
    'SAM on normalization layers',
    _norms,
    None,
    radius=4.0,
    in_short=True,
    needs_norms=True,
  ),
  'norms_quarter': Variant(
    'normalization layers, a quarter of the batch',
    _norms,
    None,
    settings={'fraction': _QUARTER},
    radius=4.0,
    in_short=True,
    needs_norms=True,
  ),
  'momentum_sam': Variant(
    'momentum SAM', optax_sam.momentum_sam, None, radius=4.0, in_short=True
  ),
  'asam': Variant('ASAM', optax_sam.asam, radius=10.0, in_short=True),
  **{
    f'{name}_{round(100 * sparsity)}': _sparse(how, sparsity)
    for sparsity in (0.5, 0.8, 0.9)
    for name, how in (
      ('sparse_fisher', 'Fisher'),
      ('sparse_dynamic', 'dynamic'),
    )
  },
  'ss_sam_like_ae_sam': Variant(
    'SS-SAM as often as AE-SAM', optax_sam.ss_sam, follows='ae_sam'
  ),
  'sam_every_2nd': Variant('SAM at every 2nd step', _every_2nd),
  'ae_look_sam': Variant('AE-LookSAM', optax_sam.ae_look_sam, in_short=True),
  'ss_sam_like_ae_look_sam': Variant(
    'SS-SAM as often as AE-LookSAM', optax_sam.ss_sam, follows='ae_look_sam'
  ),
  'sam_along_average': Variant("SAM along F-SAM's average", _sam_along_average),
  'k_sam': _k_sam(_THIRD, 'a third'),
  'k_sam_eighth': _k_sam(_EIGHTH, 'an eighth'),
  'random_third': _random_sam(_THIRD, 'third'),
  'random_eighth': _random_sam(_EIGHTH, 'eighth'),
  'k_sam_half': _k_sam(_HALF, 'a half'),
  'random_half': _random_sam(_HALF, 'half'),
}
