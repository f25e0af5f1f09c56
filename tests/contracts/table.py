"""The rows of the contracts: methods of the catalog and some variants.

A row builds a method alone or with its base optimizer, with settings for which
a few steps execute both branches. Contracts that depend on the rule of a method
run over all rows. Contracts of the engine run over representatives, one for
each kind of method, or over one row of every path through the engine.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import optax_sam
from optax_sam import catalog, descents, perturbations, policies, selections

BATCH_LIKE = {
  name: jax.ShapeDtypeStruct((8, *shape), jnp.float32)
  for name, shape in (('weight', ()), ('x', (3,)), ('y', (2,)))
}

# Values of arguments by name, for few steps and a small batch.
_SETTINGS = {
  'ascent': 2,
  'batch_like': BATCH_LIKE,
  'descent': 0.5,
  'every': 2,
  'fraction': 0.25,
  'inner_steps': 3,
  'k': 0.5,
  'key': 1,
  'micro_batch_size': 3,
  'micro_batches': 3,
  # An integer, because a checkpoint restores it with its type.
  'num_data': 40,
  'num_perturbations': 2,
  # Odd, so that the mean of three equal gradients is rounded.
  'num_samples': 3,
  'period': 3,
  'power_steps': 2,
  'quantile': 0.5,
  'refresh_every': 2,
  'start': 2,
  'total_steps': 20,
}

# Settings with which `rho=0` equals the base optimizer, if the defaults don't.
NEUTRAL = {
  'anti_pgd': {'sigma': 0.0},
  'esam': {'gamma': 1.0},
  'gcsam': {'order': 'official'},
  'everything': {'ascent': 1.0, 'descent': 1.0},
  'gradient_norm_penalty of unit length': {'normalize_clean': False},
  'k_sam': {'ascent': 1.0, 'descent': 1.0},
  'lookbehind': {'steps': 1, 'alpha': 1.0},
  'ordered_sgd': {'k': 1.0},
  'sagm': {'alpha': 0.0},
}
# Methods that average over examples in another order than the base optimizer,
# or that add to its update.
ROUNDS = (
  'anti_pgd',
  'esam',
  'everything',
  'k_sam',
  'lpf_sgd',
  'm_sam',
  'ordered_sgd',
  'sagm',
  'tsam',
  'wsam_decoupled',
)
# Two gradients of two batches, for any radius.
NEVER_THE_BASE = ('sampa',)


def base() -> optax.GradientTransformation:
  """Returns the base optimizer of the contracts."""
  return optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.1, 0.9))


@dataclasses.dataclass(frozen=True)
class Row:
  """A method with some settings.

  Attributes:
    name: name of the method or of the variant.
    method: its row of the catalog.
    changes: settings of the variant.
    factory: function that builds it, if it differs from the method's.
  """

  name: str
  method: catalog.Method
  changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  factory: Callable[..., Any] | None = None

  @property
  def function(self) -> Callable[..., Any]:
    """The function that builds the method."""
    return self.factory or self.method.function

  @property
  def parameters(self) -> Mapping[str, inspect.Parameter]:
    """The arguments of the function."""
    return inspect.signature(self.function).parameters

  @property
  def static(self) -> tuple[str, ...]:
    """Static arguments of `optax.inject_hyperparams`."""
    wraps = self.method.place == 'wraps'
    return (*(('base',) if wraps else ()), *self.method.static)

  @property
  def place(self) -> str:
    """Placement relative to the base: chain, wraps, replaces or after."""
    return self.method.place

  @property
  def radius(self) -> str | None:
    """Name of the radius, None if the method has none."""
    return self.method.radius

  def settings(self, rho: Any = 0.05) -> dict[str, Any]:
    """Returns the arguments of the function."""
    given = {**self.method.example, **_SETTINGS}
    given = {name: x for name, x in given.items() if name in self.parameters}
    radius = {self.radius: rho} if self.radius else {}
    return {**given, **radius, **self.changes}

  def alone(
    self,
    rho: Any = 0.05,
    *,
    inject: bool = False,
    base: Callable[[], optax.GradientTransformation] = base,
    **changes: Any,
  ) -> Any:
    """Builds the method, without a base optimizer if it wraps none.

    Args:
      rho: the radius, for any name of the argument.
      inject: whether its hyperparameters are injected into the state.
      base: base optimizer of a wrapper.
      **changes: further arguments.
    """
    given = {**self.settings(rho), **changes}
    if self.place == 'wraps':
      given['base'] = base()
    factory = self.function
    if inject:
      factory = optax.inject_hyperparams(factory, static_args=self.static)
    return factory(**given)

  def whole(
    self,
    rho: Any = 0.05,
    *,
    base: Callable[[], optax.GradientTransformation] = base,
    **changes: Any,
  ) -> optax.GradientTransformationExtraArgs:
    """Builds the method with its base optimizer."""
    method = self.alone(rho, base=base, **changes)
    if self.place == 'chain':
      return optax.chain(method, base())
    if self.place == 'after':
      return optax.chain(base(), method)
    return method

  def part(self, opt_state: Any) -> Any:
    """Returns the state of the method within that of the optimizer."""
    if self.place == 'chain':
      return opt_state[0]
    return opt_state[1] if self.place == 'after' else opt_state

  def own(self, opt_state: Any) -> Any:
    """Returns the same without injected hyperparameters and base state."""
    return self.of_method(self.part(opt_state))

  def of_method(self, state: Any) -> Any:
    """Returns the state of the method without injected hyperparameters."""
    state = getattr(state, 'inner_state', state)
    return state._replace(base=()) if self.place == 'wraps' else state

  def of_base(self, opt_state: Any) -> Any:
    """Returns the state of the base optimizer."""
    if self.place == 'wraps':
      part = self.part(opt_state)
      return getattr(part, 'inner_state', part).base
    return opt_state[1] if self.place == 'chain' else opt_state[0]


# All methods that are part of an optimizer, or are one.
METHODS = {
  name: Row(name, method)
  for name, method in catalog.METHODS.items()
  if method.is_transformation
}


def everything(
  rho: optax.ScalarOrSchedule,
  *,
  ascent: float = 4,
  descent: float = 0.5,
  mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
  """A composition in which all four components have a state or requirements."""
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
  )


def variant(of: str, words: str, **changes: Any) -> dict[str, Row]:
  """Returns the row of a method with other settings, by name."""
  name = f'{of} {words}'
  return {name: Row(name, METHODS[of].method, changes)}


# Settings that take another path through the code.
VARIANTS = {
  **variant('sam', 'in steps', ascent_steps=2),
  **variant('friendly_sam', 'official', order='official'),
  **variant('look_sam', 'in bfloat16', accumulator_dtype='bfloat16'),
  **variant('gradient_norm_penalty', 'of unit length', normalize_clean=True),
  **variant('unnormalized_sam', 'clipped', clip=True),
  **variant('sparse_sam_layers', 'whole batch', fraction=1.0),
  **variant('look_layer_sam', 'layer', rule='layer'),
  # Needs examples, with static sizes, like this method.
  'everything': Row('everything', METHODS['k_sam'].method, factory=everything),
}
ROWS = METHODS | VARIANTS

# One method for each kind of state and computation.
REPRESENTATIVES = {
  'sam': 'no state',
  'friendly_sam': 'a perturbation with state',
  'eigen_sam': 'a direction that is refreshed at some steps',
  'sparse_sam_fisher': 'a sparse mask, and per-example losses',
  'momentum_sam': 'a perturbation by earlier gradients',
  'ss_sam': 'a random policy',
  'ae_sam': 'a policy that reads the gradient',
  'look_sam': 'a direction that is reused',
  'k_sam': 'a subset of the examples',
  'm_sam': 'micro-batches',
  'cr_sam': 'gradients on both sides',
  'frob_sam': 'its own perturbations, and the loss itself',
  'everything': 'state in all four choices',
  'lookbehind': 'wraps the base optimizer',
  'b_sam': 'replaces the base optimizer',
}


def _each(names: Any, wanted: Callable[[Row], Any]) -> pytest.MarkDecorator:
  # Tests of one method run on one worker, which compiles its step once.
  return pytest.mark.parametrize(
    'name',
    [
      pytest.param(name, marks=pytest.mark.xdist_group(name))
      for name in names
      if wanted(ROWS[name])
    ],
  )


def every_row(
  wanted: Callable[[Row], Any] = lambda _: True,
) -> pytest.MarkDecorator:
  """Runs a test for every row that satisfies a predicate."""
  return _each(ROWS, wanted)


def every_method(
  wanted: Callable[[Row], Any] = lambda _: True,
) -> pytest.MarkDecorator:
  """Runs a test for every row that is not a variant."""
  return _each(METHODS, wanted)


def every_kind(
  wanted: Callable[[Row], Any] = lambda _: True,
) -> pytest.MarkDecorator:
  """Runs a test for every representative."""
  return _each(REPRESENTATIVES, wanted)


@functools.cache
def _path(name: str) -> tuple[Any, ...]:
  """Returns what decides which code of the engine a step of a row executes.

  These are its place, its arguments, which of its gradients are averaged over
  devices, and which of the four components have a state. If it is not composed
  of these components, the type of its state replaces them.
  """
  row = ROWS[name]
  vector = jax.ShapeDtypeStruct((2,), jnp.float32)
  state = row.of_method(jax.eval_shape(row.alone().init, vector))
  kind = type(state).__name__
  if isinstance(state, optax_sam.SharpnessAwareState):
    parts = (state.perturbation, state.policy, state.descent, state.selection)
    kind = tuple(bool(jax.tree.leaves(part)) for part in parts)
  return row.place, row.method.needs, row.method.collectives, kind


def paths() -> list[str]:
  """Returns the representatives, and the first row of every other path.

  A new row that takes a new path is included without further changes.
  """
  known = {_path(name) for name in REPRESENTATIVES}
  first = {_path(name): name for name in reversed(ROWS)}
  others = {name for path, name in first.items() if path not in known}
  return [name for name in ROWS if name in {*REPRESENTATIVES, *others}]


def every_path(
  wanted: Callable[[Row], Any] = lambda _: True,
) -> pytest.MarkDecorator:
  """Runs a test for one row of every path through the engine."""
  return _each(paths(), wanted)


def in_chain(row: Row) -> bool:
  """Whether a method is placed before the base optimizer in a chain."""
  return row.place == 'chain'
