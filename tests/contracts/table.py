"""Every public method, one row each.

A contract is a test that runs over all rows. A public method without a row is
an error (`test_table.py`), so a new method can't be forgotten.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import optax
import pytest

import optax_sam
from optax_sam import descents, perturbations, policies, selections


@dataclasses.dataclass(frozen=True)
class Row:
  """One method, and what is particular about it.

  Attributes:
    factory: the function that builds it, the radius first.
    arguments: what it is called with beside `rho`.
    static: arguments that shape the compiled program, so that
      `optax.inject_hyperparams` must leave them alone.
    perturbs: whether it perturbs at all, and so takes `rho`, `mask` and
      `sync_ascent`.
    needs_examples: whether it needs `per_example_value_fn` and `batch`.
    ascends_on_parts: whether the gradient that it ascends with is that of a
      part of the batch.
    skips: whether some of its steps take no second gradient.
    refreshes: whether it renews what it keeps at some of its steps only.
    has_length_rho: whether the perturbation has length rho.
    ascending: arguments with which the first step perturbs.
    neutral: arguments with which `rho=0` leaves the base optimizer.
    rounds: whether that holds up to rounding only.
    radius: name of the first argument, 0 of which leaves the base optimizer.
    delayed: whether the first step has nothing yet to perturb by.
    ignores_gradient: whether the gradient that comes in makes no difference.
    ascends_alike: whether all devices perturb alike, synced or not.
    needs_loss: whether a gradient at the perturbed parameters isn't enough.
    converging: arguments with which it isn't slow along a narrow valley.
  """

  factory: Callable[..., optax.GradientTransformationExtraArgs]
  arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  static: tuple[str, ...] = ()
  perturbs: bool = True
  needs_examples: bool = False
  ascends_on_parts: bool = False
  skips: bool = False
  refreshes: bool = False
  has_length_rho: bool = True
  ascending: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  neutral: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  rounds: bool = False
  radius: str = 'rho'
  delayed: bool = False
  ignores_gradient: bool = False
  ascends_alike: bool = False
  needs_loss: bool = False
  converging: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __call__(self, rho: Any = 0.05, **changes: Any) -> Any:
    """Builds the method; `rho` is left out where there is none."""
    return self._build(self.factory, rho, changes)

  def injected(self, rho: Any = 0.05, **changes: Any) -> Any:
    """Builds it with its numbers in the state, where they can be changed."""
    factory = optax.inject_hyperparams(self.factory, static_args=self.static)
    return self._build(factory, rho, changes)

  def _build(
    self, factory: Callable[..., Any], rho: Any, changes: Mapping[str, Any]
  ) -> Any:
    radius = {self.radius: rho} if self.perturbs else {}
    return factory(**{**radius, **self.arguments, **changes})


def unpublished(
  rho: optax.ScalarOrSchedule,
  *,
  alpha: float = 0.5,
  start: int = 1,
  mask: Any = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """A composition of choices that no method makes."""
  return optax_sam.sharpness_aware(
    optax.chain(
      perturbations.subtract_ema(0.5), perturbations.scale_to_radius(rho)
    ),
    policy=policies.after(start, policies.every(2)),
    descent=descents.mix(alpha),
    mask=mask,
    axis_name=axis_name,
    sync_ascent=sync_ascent,
  )


def everything(
  rho: optax.ScalarOrSchedule,
  *,
  ascent: float = 4,
  descent: float = 0.5,
  mask: Any = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """A composition in which all four choices keep or need something."""
  return optax_sam.sharpness_aware(
    optax.chain(
      perturbations.subtract_ema(0.5),
      perturbations.scale_to_radius(rho),
      perturbations.keep_top_fisher(0.5, num_samples=3, refresh_every=2),
    ),
    policy=policies.on_sharp_gradients(20),
    descent=descents.reuse_orthogonal(),
    selection=selections.top_k(ascent, descent),
    mask=mask,
    axis_name=axis_name,
    sync_ascent=sync_ascent,
  )


def coupled_gsam(
  rho: optax.ScalarOrSchedule,
  *,
  mask: Any = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """GSAM with a radius that follows the learning rate; `rho` is that rate."""
  rate = rho if callable(rho) else (lambda _: rho)
  radius = optax_sam.rho_like_learning_rate(
    rate, rho_max=1.0, rho_min=0.0, lr_max=1.0, lr_min=0.0
  )
  return optax_sam.gsam(
    radius, mask=mask, axis_name=axis_name, sync_ascent=sync_ascent
  )


METHODS = {
  'sam': Row(optax_sam.sam, static=('p', 'ascent_steps')),
  'asam': Row(optax_sam.asam, has_length_rho=False),
  'friendly_sam': Row(optax_sam.friendly_sam),
  'gsam': Row(optax_sam.gsam),
  'gradient_norm_penalty': Row(optax_sam.gradient_norm_penalty),
  'wsam': Row(optax_sam.wsam),
  'fisher_sam': Row(optax_sam.fisher_sam, has_length_rho=False),
  'unnormalized_sam': Row(optax_sam.unnormalized_sam, has_length_rho=False),
  'ss_sam': Row(
    optax_sam.ss_sam,
    {'probability': 0.5, 'key': 1},
    skips=True,
    ascending={'probability': 1.0},
  ),
  'look_sam': Row(optax_sam.look_sam, {'period': 3}, skips=True),
  'look_layer_sam': Row(
    optax_sam.look_layer_sam, {'period': 3}, skips=True, has_length_rho=False
  ),
  'ae_sam': Row(optax_sam.ae_sam, {'total_steps': 20}, skips=True),
  'ae_look_sam': Row(optax_sam.ae_look_sam, {'total_steps': 20}, skips=True),
  'sparse_sam_fisher': Row(
    optax_sam.sparse_sam_fisher,
    {'num_samples': 5, 'refresh_every': 2},
    static=('sparsity', 'num_samples'),
    needs_examples=True,
    refreshes=True,
    has_length_rho=False,
  ),
  'sparse_sam_dynamic': Row(
    optax_sam.sparse_sam_dynamic,
    {'refresh_every': 2, 'total_steps': 20, 'key': 1},
    static=('sparsity',),
    refreshes=True,
    has_length_rho=False,
  ),
  'k_sam': Row(
    optax_sam.k_sam,
    {'ascent': 2, 'descent': 0.5},
    static=('ascent', 'descent'),
    needs_examples=True,
    ascends_on_parts=True,
    neutral={'ascent': 1.0, 'descent': 1.0},
    rounds=True,
  ),
  'esam': Row(
    optax_sam.esam,
    {'key': 1},
    static=('gamma',),
    needs_examples=True,
    ascending={'beta': 1.0},
    neutral={'gamma': 1.0},
    rounds=True,
  ),
  'ordered_sgd': Row(
    optax_sam.ordered_sgd,
    {'k': 0.5},
    static=('k',),
    perturbs=False,
    needs_examples=True,
    ascends_on_parts=True,
    neutral={'k': 1.0},
    rounds=True,
  ),
  'subset_sam': Row(
    optax_sam.subset_sam,
    {'fraction': 0.25},
    static=('fraction',),
    needs_examples=True,
    ascends_on_parts=True,
  ),
  'm_sam': Row(
    optax_sam.m_sam,
    {'micro_batch_size': 3},
    static=('micro_batch_size',),
    needs_examples=True,
    ascends_on_parts=True,
    rounds=True,
  ),
  'le_sam': Row(optax_sam.le_sam, has_length_rho=False, radius='sigma'),
  'z_sharp': Row(optax_sam.z_sharp, {'quantile': 0.5}, static=('quantile',)),
  'momentum_sam': Row(
    optax_sam.momentum_sam,
    delayed=True,
    ignores_gradient=True,
    ascends_alike=True,
  ),
  'cr_sam': Row(optax_sam.cr_sam),
  'eigen_sam': Row(
    optax_sam.eigen_sam,
    {'refresh_every': 2, 'power_steps': 2, 'key': 1},
    static=('power_steps',),
    refreshes=True,
    has_length_rho=False,
  ),
  'frob_sam': Row(
    optax_sam.frob_sam,
    {'num_samples': 2, 'key': 1},
    static=('num_samples',),
    has_length_rho=False,
    needs_loss=True,
    # Whatever the radius is: it resists the curvature across the valley.
    converging={'penalty': 1e-4},
  ),
  'lpf_sgd': Row(
    optax_sam.lpf_sgd,
    {'micro_batches': 3, 'total_steps': 20, 'key': 2},
    static=('micro_batches',),
    needs_examples=True,
    # There is no ascent gradient.
    ascends_on_parts=True,
    has_length_rho=False,
    rounds=True,
    radius='gamma',
    ignores_gradient=True,
    ascends_alike=True,
    converging={'final_ratio': 1.0},
  ),
  'async_sam': Row(optax_sam.async_sam, delayed=True, ascends_alike=True),
}


def variant(name: str, factory: Any = None, **changes: Any) -> Row:
  """Returns the row of a method with other arguments."""
  row = METHODS[name]
  return dataclasses.replace(
    row,
    factory=factory or row.factory,
    arguments={**row.arguments, **changes},
  )


# Other settings of these that take another way through the code.
VARIANTS = {
  'sam in steps': variant('sam', ascent_steps=2),
  'friendly_sam official': variant('friendly_sam', order='official'),
  'friendly_sam in bfloat16': variant(
    'friendly_sam', accumulator_dtype='bfloat16'
  ),
  'look_sam in bfloat16': variant('look_sam', accumulator_dtype='bfloat16'),
  'gsam coupled': variant('gsam', coupled_gsam),
  'gradient_norm_penalty of unit length': dataclasses.replace(
    variant('gradient_norm_penalty', normalize_clean=True),
    neutral={'normalize_clean': False},
  ),
  'unnormalized_sam clipped': variant('unnormalized_sam', clip=True),
  'look_layer_sam layer': variant('look_layer_sam', rule='layer'),
  'look_layer_sam unit': variant('look_layer_sam', rule='unit'),
  'sparse_sam_fisher 1:2': variant('sparse_sam_fisher', pattern='1:2'),
  'esam of a number': variant('esam', gamma=3),
  'subset_sam drawn': variant('subset_sam', fraction=3, key=1),
  'z_sharp per_tensor': dataclasses.replace(
    variant('z_sharp', radius='per_tensor'), has_length_rho=False
  ),
  'lpf_sgd of one part': dataclasses.replace(
    variant('lpf_sgd', micro_batches=1), needs_examples=False, rounds=False
  ),
  'unpublished': Row(unpublished, skips=True, ascending={'start': 0}),
  'everything': Row(
    everything,
    static=('ascent', 'descent'),
    needs_examples=True,
    ascends_on_parts=True,
    skips=True,
    refreshes=True,
    has_length_rho=False,
    neutral={'ascent': 1.0, 'descent': 1.0},
    rounds=True,
  ),
}

ROWS = METHODS | VARIANTS

# Elements that stand behind the base optimizer: they see updates, perturb
# nothing and ask for no function of the loss, so that no contract fits. Theirs
# are in test_last.py.
LAST = ('anti_pgd', 'swa')


def every_row(**wanted: bool) -> pytest.MarkDecorator:
  """Runs a test for every row whose attributes are as wanted."""
  names = [
    name
    for name, row in ROWS.items()
    if all(getattr(row, key) == value for key, value in wanted.items())
  ]
  return pytest.mark.parametrize('name', names)


# First arguments of what holds a base optimizer, or stands instead of one. The
# contracts of an element fit neither; theirs are in test_around_base.py.
NO_ELEMENT = ('base', 'learning_rate')


def public_methods() -> dict[str, Callable[..., Any]]:
  """Returns the public functions that build a method.

  Known by the first argument, or by what they say that they return. What
  wraps a base optimizer is no element of a chain and has tests of its own, as
  has what stands last in one.
  """
  found = {}
  for name in optax_sam.__all__:
    function = getattr(optax_sam, name)
    if not inspect.isfunction(function) or name == 'sharpness_aware':
      continue
    if name in LAST:
      continue
    signature = inspect.signature(function)
    first = next(iter(signature.parameters), None)
    returns = signature.return_annotation
    builds = inspect.isclass(returns) and issubclass(
      returns, optax.GradientTransformation
    )
    if first not in NO_ELEMENT and (first == 'rho' or builds):
      found[name] = function
  return found
