"""The variants: the base optimizer, methods, and their controls."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import optax

import optax_sam
from optax_sam import perturbations

BASE = 'base'

# All methods have the same number of candidate radii.
RADII = (0.05, 0.1, 0.2, 0.5, 1.0)
_ADAPTIVE_RADII = tuple(10 * rho for rho in RADII)
_THIRD, _EIGHTH = 1 / 3, 1 / 8
_FEWER_EXAMPLES = (1.0, 1 / 3)


@dataclasses.dataclass(frozen=True)
class Variant:
  """A method with its settings.

  Attributes:
    title: name on the page.
    factory: maps a radius and settings to the transformation; None for the base
      optimizer alone.
    gradients: cost of a step in full gradients, from the fraction of steps with
      a perturbed gradient.
    settings: settings that differ from the defaults of the factory.
    radii: candidate radii.
    rates: candidate learning rates, relative to that of the base optimizer;
      smaller ones for methods that descend on few examples.
    length: number of steps relative to other variants.
    batch_fraction: fraction of each batch that it uses.
    follows: the variant whose fraction of perturbed gradients is its
      probability.
    takes_per_example_losses: whether it differentiates per-example losses.
  """

  title: str
  factory: Callable[..., optax.GradientTransformation] | None = None
  gradients: Callable[[float], float] = lambda fraction: 1 + fraction
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  radii: tuple[float, ...] = RADII
  rates: tuple[float, ...] = (1.0,)
  length: int = 1
  batch_fraction: float = 1.0
  follows: str | None = None
  takes_per_example_losses: bool = False

  @property
  def is_method(self) -> bool:
    """Whether there is a method before the base optimizer."""
    return self.factory is not None

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
  )


def _k_sam(fraction: float, title: str) -> Variant:
  return Variant(
    f'K-SAM, {title} each',
    optax_sam.k_sam,
    lambda _: 1 / 3 + 2 * fraction,
    settings={'ascent': fraction, 'descent': fraction},
    rates=_FEWER_EXAMPLES,
  )


def _random_sam(fraction: float, title: str) -> Variant:
  return Variant(
    f'SAM on a random {title}',
    optax_sam.sam,
    lambda _: 2 * fraction,
    batch_fraction=fraction,
    rates=_FEWER_EXAMPLES,
  )


VARIANTS: dict[str, Variant] = {
  BASE: Variant('base'),
  'base_twice': Variant('base, twice the steps', length=2),
  'sam': Variant('SAM', optax_sam.sam),
  'asam': Variant('ASAM', optax_sam.asam, radii=_ADAPTIVE_RADII),
  **{
    f'{name}_{round(100 * sparsity)}': _sparse(how, sparsity)
    for name, how in (
      ('sparse_fisher', 'Fisher'),
      ('sparse_dynamic', 'dynamic'),
    )
    for sparsity in (0.5, 0.8, 0.9, 0.95)
  },
  'ae_sam': Variant('AE-SAM', optax_sam.ae_sam),
  'ss_sam_like_ae_sam': Variant(
    'SS-SAM as often as AE-SAM', optax_sam.ss_sam, follows='ae_sam'
  ),
  'look_sam_2': Variant(
    'LookSAM, every 2nd', optax_sam.look_sam, settings={'period': 2}
  ),
  'sam_every_2nd': Variant(
    'SAM at every 2nd step',
    lambda rho: optax_sam.sharpness_aware(
      perturbations.scale_to_radius(rho), policy=optax_sam.policies.every(2)
    ),
  ),
  'ae_look_sam': Variant('AE-LookSAM', optax_sam.ae_look_sam),
  'look_sam_5': Variant('LookSAM, every 5th', optax_sam.look_sam),
  'ss_sam_like_ae_look_sam': Variant(
    'SS-SAM as often as AE-LookSAM', optax_sam.ss_sam, follows='ae_look_sam'
  ),
  'friendly_sam': Variant('F-SAM', optax_sam.friendly_sam),
  'sam_along_average': Variant("SAM along F-SAM's average", _sam_along_average),
  'k_sam': _k_sam(_THIRD, 'a third'),
  'k_sam_eighth': _k_sam(_EIGHTH, 'an eighth'),
  'random_third': _random_sam(_THIRD, 'third'),
  'random_eighth': _random_sam(_EIGHTH, 'eighth'),
  'esam': Variant(
    'ESAM', optax_sam.esam, lambda _: 4 / 3 + 0.5, rates=_FEWER_EXAMPLES
  ),
  'subset_sam': Variant(
    'Subset SAM, a quarter', optax_sam.subset_sam, lambda _: 1.25 + 1 / 3
  ),
}
