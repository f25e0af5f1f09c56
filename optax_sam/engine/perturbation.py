"""Perturbations: from the ascent gradient to the perturbation epsilon.

Each is an `optax.GradientTransformationExtraArgs`; `optax.chain` composes them.
`optax_sam.sharpness_aware` calls `update` with the ascent gradient, the
parameters that may be perturbed, and these extra arguments: `axis_name` (what
enters a state must be averaged over it), `is_synced` (whether the ascent
gradient is averaged already), `ascent_grad_fn` (from a perturbation to the
ascent gradient there) and `loss_view` (the loss of the batch as a function of
these parameters). The perturbation has the shapes and dtypes of the ascent
gradient; it is computed in float32, or in float64 for float64 leaves.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.trees import control_flow, tree_math


class RadiusState(NamedTuple):
  """State of a schedule of the radius: `step_count`, the steps so far."""

  step_count: jax.Array


def with_radius(
  rho: optax.ScalarOrSchedule,
  perturb: Callable[..., optax.Updates],
  *,
  name: str = 'rho',
  below: float | None = float('inf'),
) -> optax.GradientTransformationExtraArgs:
  """Builds a perturbation whose only state is the step count of a schedule.

  `perturb` gets the radius and the ascent gradient, and the parameters and the
  extra arguments by name, and returns epsilon. Errors call the radius `name`;
  with `below=None` it may be infinite.
  """
  validation.check_radius(rho, name, below=below)

  def init(params: optax.Params) -> RadiusState | optax.EmptyState:
    del params
    if callable(rho):
      return RadiusState(jnp.zeros((), jnp.int32))
    return optax.EmptyState()

  def update(
    updates: Any, state: Any, params: Any = None, **extra_args: Any
  ) -> tuple[Any, Any]:
    radius = rho
    if callable(rho):
      radius = validation.at_step(rho, state.step_count, name, below=below)
      state = RadiusState(tree_math.increment(state.step_count))
    return perturb(radius, updates, params=params, **extra_args), state

  return optax.GradientTransformationExtraArgs(init, update)


def scale_to_radius(
  rho: optax.ScalarOrSchedule, *, p: float = 2
) -> optax.GradientTransformationExtraArgs:
  r"""Scales the ascent gradient to length rho: the perturbation of SAM.

  With `g` the ascent gradient and one norm over all of its leaves:

  .. math::
    \begin{align*}
      \epsilon &= \rho\, g / (\|g\|_2 + 10^{-12}) \text{ for } p = 2 \\
      \epsilon &= \rho\, \text{sign}(g) \text{ for } p = \infty
    \end{align*}

  The sign of 0 is 0. A norm that is zero or not finite gives a perturbation
  of 0. See `optax_sam.sam` for usual radii and their evidence.

  Args:
    rho: radius in the unit of the parameters, a scalar of at least 0 or a
      schedule of it by the step, counted from 0.
    p: 2 or infinity, the norm in which the perturbation has length rho.

  Returns:
    A perturbation, stateless unless rho is a schedule.

  .. note::
    In this and all other rules, 1e-12 is added in float64 to norms of at least
    5e-10 only: otherwise the perturbation would depend on the unit of the loss.
    Published code adds 1e-12, 1e-16, 1e-7 or nothing, in which case a gradient
    of zero gives NaN.

  >>> g = jnp.array([3.0, -4.0])
  >>> for p in (2, float('inf')):
  ...   component = scale_to_radius(0.5, p=p)
  ...   epsilon, _ = component.update(g, component.init(g))
  ...   print([round(x, 3) for x in epsilon.tolist()])
  [0.3, -0.4]
  [0.5, -0.5]
  """
  validation.check_choice('p', p, (2, float('inf')))

  def perturb(radius: Any, updates: optax.Updates, **_: Any) -> optax.Updates:
    return ascent_step(radius, updates, p)

  return with_radius(rho, perturb)


class RandomState(NamedTuple):
  """State of a component that draws random numbers at every step.

  `step_count` is the number of steps so far, `key` the typed key of all draws.
  """

  step_count: jax.Array
  key: jax.Array

  @classmethod
  def of(cls, key: jax.Array | int) -> 'RandomState':
    """Returns the state before the first step."""
    return cls(jnp.zeros((), jnp.int32), validation.as_key(key))

  def advance(self) -> 'RandomState':
    """Returns the state of the next step."""
    return self._replace(step_count=tree_math.increment(self.step_count))


def keep_random_tensors(
  probability: float, key: jax.Array | int
) -> optax.GradientTransformation:
  """Keeps whole leaves at random, one draw per leaf and step: ESAM.

  With t the step and l the number of a leaf, both from 0, the leaf is kept if
  `bernoulli(fold_in(fold_in(key, t), l), p)` is True; otherwise it is set to 0.
  See `optax_sam.esam`, whose radius makes up for the dropped leaves.

  Args:
    probability: chance p that a leaf is kept, in (0, 1].
    key: integer seed or one typed key, the same on all devices; not the key of
      dropout.

  Returns:
    A perturbation with state (`RandomState`).

  >>> component, g = keep_random_tensors(0.5, key=3), [jnp.ones(1)] * 3
  >>> state = component.init(g)
  >>> for _ in range(2):
  ...   epsilon, state = component.update(g, state)
  ...   print([leaf.tolist() for leaf in epsilon])
  [[0.0], [1.0], [1.0]]
  [[1.0], [1.0], [0.0]]
  """
  validation.check_number('probability', probability, above=0, at_most=1)
  validation.check_key(key)

  def init(params: optax.Params) -> RandomState:
    del params
    return RandomState.of(key)

  def update(
    updates: Any, state: Any, params: Any = None
  ) -> tuple[Any, RandomState]:
    del params
    draw = jax.random.fold_in(state.key, state.step_count)
    leaves, structure = jax.tree.flatten(updates)
    p = jnp.asarray(probability, jnp.float32)
    kept = [
      jnp.where(jax.random.bernoulli(jax.random.fold_in(draw, i), p), leaf, 0)
      for i, leaf in enumerate(leaves)
    ]
    return structure.unflatten(kept), state.advance()

  return optax.GradientTransformation(init, update)


def on_refresh(
  count: jax.Array,
  every: Any,
  refresh: Callable[[], Any],
  keep: Callable[[], Any],
) -> Any:
  """Calls `refresh` at every n-th step, also the first, otherwise `keep`."""
  due = count % jnp.asarray(every, jnp.int32) == 0
  return control_flow.cond(due, refresh, keep)


def ascent_step(
  radius: Any, gradient: optax.Updates, p: float
) -> optax.Updates:
  """Returns the steepest ascent step of length `radius` in the p-norm."""
  return (
    tree_math.scale_to(radius, gradient)
    if p == 2
    else _sign_step(radius, gradient)
  )


def _sign_step(radius: Any, gradient: optax.Updates) -> optax.Updates:
  size = tree_math.norm(gradient)
  signs = jax.tree.map(jnp.sign, gradient)
  return tree_math.multiply_where(
    tree_math.is_usable(size), jnp.asarray(radius, size.dtype), signs
  )
