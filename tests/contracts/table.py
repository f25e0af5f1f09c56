"""Every public method, one row each, and the one problem they all train on.

A contract is a test that runs over all rows. A public method without a row is
an error (`test_table.py`), so a new method can't be forgotten.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam import descents, perturbations, policies


@dataclasses.dataclass(frozen=True)
class Row:
  """One method, and what is particular about it.

  Attributes:
    factory: the function that builds it, `rho` first.
    arguments: what it is called with beside `rho`.
    static: arguments that shape the compiled program, so that
      `optax.inject_hyperparams` must leave them alone.
    picks_examples: whether it needs `per_example_value_fn` and `batch`.
    skips: whether some of its steps take no second gradient.
  """

  factory: Callable[..., optax.GradientTransformationExtraArgs]
  arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  static: tuple[str, ...] = ()
  picks_examples: bool = False
  skips: bool = False

  def __call__(self, rho: Any = 0.05, **changes: Any) -> Any:
    """Builds the method."""
    return self.factory(rho, **{**self.arguments, **changes})

  def injected(self, rho: Any = 0.05, **changes: Any) -> Any:
    """Builds it with its numbers in the state, where they can be changed."""
    factory = optax.inject_hyperparams(self.factory, static_args=self.static)
    return factory(rho, **{**self.arguments, **changes})

  @property
  def rho_0_is_base(self) -> bool:
    """Whether rho=0 leaves the base optimizer."""
    return not self.picks_examples


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


METHODS = {
  'sam': Row(optax_sam.sam, static=('p', 'ascent_steps')),
  'asam': Row(optax_sam.asam),
  'friendly_sam': Row(optax_sam.friendly_sam),
  'ss_sam': Row(optax_sam.ss_sam, {'probability': 0.5, 'key': 1}, skips=True),
  'look_sam': Row(optax_sam.look_sam, {'period': 3}, skips=True),
  'ae_sam': Row(optax_sam.ae_sam, {'total_steps': 20}, skips=True),
  'ae_look_sam': Row(optax_sam.ae_look_sam, {'total_steps': 20}, skips=True),
  'k_sam': Row(
    optax_sam.k_sam,
    {'ascent': 2, 'descent': 0.5},
    static=('ascent', 'descent'),
    picks_examples=True,
  ),
  'subset_sam': Row(
    optax_sam.subset_sam,
    {'fraction': 0.25},
    static=('fraction',),
    picks_examples=True,
  ),
}

# Other settings of these that take another way through the code.
VARIANTS = {
  'sam in steps': Row(
    optax_sam.sam, {'ascent_steps': 2}, static=('p', 'ascent_steps')
  ),
  'friendly_sam official': Row(optax_sam.friendly_sam, {'order': 'official'}),
  'subset_sam drawn': Row(
    optax_sam.subset_sam,
    {'fraction': 3, 'key': 1},
    static=('fraction',),
    picks_examples=True,
  ),
  'unpublished': Row(unpublished, skips=True),
}

ROWS = METHODS | VARIANTS


def every_row(**wanted: bool) -> pytest.MarkDecorator:
  """Runs a test for every row whose attributes are as wanted."""
  names = [
    name
    for name, row in ROWS.items()
    if all(getattr(row, key) == value for key, value in wanted.items())
  ]
  return pytest.mark.parametrize('name', names)


def public_methods() -> dict[str, Callable[..., Any]]:
  """Returns the public functions that build a method.

  Known by the first argument, or by what they say that they return.
  """
  found = {}
  for name in optax_sam.__all__:
    function = getattr(optax_sam, name)
    if not inspect.isfunction(function) or name == 'sharpness_aware':
      continue
    signature = inspect.signature(function)
    first = next(iter(signature.parameters), None)
    returns = signature.return_annotation
    builds = inspect.isclass(returns) and issubclass(
      returns, optax.GradientTransformation
    )
    if first == 'rho' or builds:
      found[name] = function
  return found


NUM_EXAMPLES = 8


def params(dtype: Any = jnp.float32) -> optax.Params:
  """Returns the parameters of a dense layer and of a scale behind it."""
  numbers = np.sin(np.arange(1, 13))
  return {
    'dense': {
      'bias': jnp.asarray(0.1 * numbers[:2], dtype),
      'kernel': jnp.asarray(numbers[2:8].reshape(3, 2), dtype),
    },
    'norm': {'scale': jnp.asarray(1 + 0.1 * numbers[8:10], dtype)},
  }


def batch(step: int = 0) -> dict[str, jax.Array]:
  """Returns another batch at each of the steps."""
  numbers = np.sin(np.arange(NUM_EXAMPLES * 5) * 1.7 + step)
  x, y = np.split(numbers.reshape(NUM_EXAMPLES, 5), [3], axis=1)
  return {
    'weight': jnp.ones(NUM_EXAMPLES, jnp.float32),
    'x': jnp.asarray(x, jnp.float32),
    'y': jnp.asarray(y, jnp.float32),
  }


# Jitted for the sake of the tests that run a step outside of jit.
@jax.jit
def losses(params: optax.Params, batch: Any) -> jax.Array:
  """Returns the weighted squared error of every example."""
  batch = jax.tree.map(
    lambda leaf: leaf.astype(params['norm']['scale'].dtype), batch
  )
  kernel, bias = params['dense']['kernel'], params['dense']['bias']
  scale = params['norm']['scale']
  hidden = jnp.tanh(batch['x'] @ kernel + bias[None])
  error = hidden * scale[None] - batch['y']
  return batch['weight'] * jnp.sum(jnp.square(error), axis=1)


@jax.jit
def loss(params: optax.Params, batch: Any) -> jax.Array:
  """Returns the mean squared error."""
  return jnp.mean(losses(params, batch))


def functions(batch: Any, losses: Callable[..., Any] = losses) -> dict:
  """Returns what a step hands to `update` beside the gradients."""
  mean = jax.jit(lambda p, b: jnp.mean(losses(p, b)))
  return {
    'value_fn': lambda p: mean(p, batch),
    'per_example_value_fn': losses,
    'batch': batch,
  }


def training_step(
  tx: optax.GradientTransformation, losses: Callable[..., Any] = losses
) -> Callable[..., tuple[optax.Params, optax.OptState]]:
  """Returns the one training step that serves every method."""

  def step(
    params: optax.Params, opt_state: optax.OptState, batch: Any
  ) -> tuple[optax.Params, optax.OptState]:
    given = functions(batch, losses)
    grads = jax.grad(given['value_fn'])(params)
    updates, opt_state = tx.update(grads, opt_state, params, **given)
    return optax.apply_updates(params, updates), opt_state

  return step


def base() -> optax.GradientTransformation:
  """Returns the base optimizer of the contracts."""
  return optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.1, 0.9))


@functools.cache
def compiled(name: str) -> tuple[Any, Callable[..., Any]]:
  """Returns a method with its base, and its jitted step, shared by tests."""
  tx = optax.chain(ROWS[name](), base())
  return tx, jax.jit(training_step(tx))


@functools.cache
def compiled_injected(name: str) -> tuple[Any, Callable[..., Any]]:
  """Returns the same with the numbers of the method in the state."""
  tx = optax.chain(ROWS[name].injected(), base())
  return tx, jax.jit(training_step(tx))


@functools.cache
def direction(name: str) -> Callable[..., tuple[optax.Updates, Any]]:
  """Returns the jitted update of a method alone, at a batch."""
  tx = ROWS[name]()

  def update(
    params: optax.Params, state: Any, batch: Any
  ) -> tuple[optax.Updates, Any]:
    grads = jax.grad(loss)(params, batch)
    return tx.update(grads, state, params, **functions(batch))

  return jax.jit(update)


@functools.cache
def compiled_base() -> tuple[Any, Callable[..., Any]]:
  """Returns the base optimizer alone, and its jitted step."""
  tx = base()
  return tx, jax.jit(training_step(optax.with_extra_args_support(tx)))


def start(tx: optax.GradientTransformation) -> tuple[Any, Any]:
  """Returns (params, opt_state) before the first step."""
  return params(), tx.init(params())


def train(
  step: Callable[..., Any], state: tuple[Any, Any], steps: range
) -> tuple[optax.Params, optax.OptState]:
  """Trains over some of the steps from (params, opt_state) on."""
  for t in steps:
    state = step(*state, batch(t))
  return state


def assert_equal(left: Any, right: Any) -> None:
  """Raises unless two trees are equal in structure, dtype and every bit."""
  assert jax.tree.structure(left) == jax.tree.structure(right)
  for (path, x), y in zip(
    jax.tree.leaves_with_path(left), jax.tree.leaves(right), strict=True
  ):
    where = jax.tree_util.keystr(path)
    assert x.dtype == y.dtype, where
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      x, y = jax.random.key_data(x), jax.random.key_data(y)
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y), where)


def assert_close(left: Any, right: Any, tolerance: float = 1e-6) -> None:
  """Raises unless two trees are nearly equal."""
  assert jax.tree.structure(left) == jax.tree.structure(right)
  for x, y in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
    np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


def all_finite(tree: Any) -> bool:
  """Whether no number of a tree is infinite or NaN; keys are passed over."""
  return all(
    bool(jnp.all(jnp.isfinite(leaf)))
    for leaf in jax.tree.leaves(tree)
    if jnp.issubdtype(leaf.dtype, jnp.floating)
  )
