"""Eigen-SAM: turns the perturbation toward the Hessian's top eigenvector."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine import devices, partition
from optax_sam.engine.perturbation import on_refresh
from optax_sam.engine.sharpness_aware import Choices, compose
from optax_sam.trees import control_flow, tree_math
from optax_sam.trees.random_trees import draw_signs


class EigenvectorState(NamedTuple):
  """State: `step_count`, and `direction`, the estimated unit eigenvector."""

  step_count: jax.Array
  direction: optax.Updates


def scale_toward_eigenvector(
  rho: optax.ScalarOrSchedule,
  *,
  alpha: float = 0.2,
  refresh_every: int = 100,
  power_steps: int = 5,
  key: jax.Array | int,
  accumulator_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
  """Turns the ascent gradient toward the Hessian's top eigenvector (Eigen-SAM).

  See `optax_sam.eigen_sam`. It works only inside `optax_sam.sharpness_aware`,
  and differentiates gradients in the dtype of the parameters.
  """
  validation.check_radius(rho)
  validation.check_number('alpha', alpha, at_least=0)
  validation.check_count('refresh_every', refresh_every)
  validation.check_static_integer('power_steps', power_steps)
  validation.check_key(key)
  validation.check_float_dtype('accumulator_dtype', accumulator_dtype)

  def init(params: optax.Params) -> EigenvectorState:
    zeros = tree_math.zeros_like(params, accumulator_dtype)
    direction = draw_signs(validation.as_key(key), zeros)
    return EigenvectorState(jnp.zeros((), jnp.int32), direction)

  def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
    if extra.get('loss_view') is None:
      msg = (
        'scale_toward_eigenvector needs products with the Hessian: use it as '
        'the perturbation of optax_sam.sharpness_aware.'
      )
      raise ValueError(msg)
    gradient = lambda p: extra['loss_view'].value_and_grad(p)[1]
    average = lambda x: devices.average(x, extra.get('axis_name'))

    def refresh() -> optax.Updates:
      if not jax.tree.leaves(params):
        return state.direction
      # The average is not finite on all devices if it is not on one.
      usable = tree_math.is_usable(average(tree_math.norm(updates)))

      def multiply(_: Any, v: optax.Updates) -> optax.Updates:
        tangents = optax.tree.cast_like(v, params)
        _, product = jax.jvp(gradient, (params,), (tangents,))
        product = jax.tree.map(tree_math.widen, average(product))
        moves = usable & tree_math.is_usable(tree_math.norm(product))
        return optax.tree.where(moves, tree_math.scale_to(1.0, product), v)

      wide = tree_math.widen_like(state.direction, params)
      found = control_flow.fori_loop(power_steps, multiply, wide)
      return optax.tree.cast_like(found, state.direction)

    keep = lambda: state.direction
    direction = on_refresh(state.step_count, refresh_every, refresh, keep)
    radius = validation.at_step(rho, state.step_count)
    size = tree_math.norm(updates)
    usable = tree_math.is_usable(size)
    size = tree_math.stabilized(jnp.where(usable, size, 1))
    along = tree_math.dot(updates, direction)
    turn = jnp.asarray(alpha, along.dtype) * jnp.sign(along)
    radius = jnp.asarray(radius, along.dtype)
    of_gradient = radius * (1 - turn * along / size) / size
    of_direction = radius * turn

    def combine(g: jax.Array, v: jax.Array) -> jax.Array:
      dtype = tree_math.wide_dtype(g, v)
      moved = of_gradient.astype(dtype) * g.astype(dtype)
      moved += of_direction.astype(dtype) * v.astype(dtype)
      return jnp.where(usable, moved, 0).astype(g.dtype)

    count = tree_math.increment(state.step_count)
    epsilon = jax.tree.map(combine, updates, direction)
    return epsilon, EigenvectorState(count, direction)

  return optax.GradientTransformationExtraArgs(init, update)


@validation.method('power_steps')
def eigen_sam(
  rho: optax.ScalarOrSchedule = 0.1,
  *,
  alpha: float = 0.2,
  refresh_every: int = 100,
  power_steps: int = 5,
  key: jax.Array | int,
  accumulator_dtype: Any = None,
  mask: partition.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  r"""Eigen-SAM: turns the perturbation toward the Hessian's top eigenvector.

  .. math::
    v &\leftarrow H v / \|H v\| \quad \text{(several times at a refresh)} \\
    h &= g / (\|g\| + 10^{-12}), \quad g = \nabla L(w) \\
    \epsilon &= \rho\, (h
      + \alpha \operatorname{sign}(g^\top v)\, (v - (h^\top v)\, h)) \\
    \tilde g &= \nabla L(w + \epsilon)

  A perturbation toward the top eigenvector :math:`v`, by power iteration,
  penalizes the top eigenvalue explicitly. Its length is at most :math:`\rho
  \sqrt{1 + \alpha^2}`. At first :math:`v` is random; step 0 refreshes it. It
  is unchanged if :math:`g` or :math:`H v` is 0 or not finite.

  Args:
    rho: radius, at least 0, or a schedule of it by the step.
    alpha: weight of the part of `v` orthogonal to `g`, at least 0; 0 is SAM.
    refresh_every: steps between refreshes, at least 1.
    power_steps: number of products with the Hessian at a refresh, at least 1.
    key: integer seed or typed key, the same on all devices.
    accumulator_dtype: dtype of `v`, e.g. bfloat16; None for float32 or wider.
    mask, axis_name, sync_ascent: see `optax_sam.sharpness_aware`. The Hessian
      is that of the leaves of `mask`, and `H v` is averaged in any case.

  Returns:
    A gradient transformation to place first in `optax.chain`, whose `update`
    needs a twice differentiable `value_fn` or a differentiable `grad_fn`;
    state: `v`. It costs 2 gradients, about 2 * `power_steps` more at a refresh.

  .. note:: All defaults are those of the authors' documented run; the default
    of their command line is `rho=0.05`. For the same `v`, their code gives the
    same numbers. But their code has no `v` for the first 100 steps, and
    perturbs by `rho * g`, not normalized, until then.

  References:
    Luo et al., `Explicit Eigenvalue Regularization Improves Sharpness-Aware
    Minimization <https://arxiv.org/abs/2501.12666>`_, NeurIPS 2024.

  >>> import jax, jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.eigen_sam(rho=0.5, alpha=1.0, power_steps=30, key=0)
  >>> loss = lambda w: (w[0] ** 2 + 4 * w[1] ** 2) / 2
  >>> w = jnp.array([1.0, 0.001])
  >>> u, _ = tx.update(jax.grad(loss)(w), tx.init(w), w, value_fn=loss)
  >>> [round(x, 1) for x in u.tolist()]  # epsilon is nearly (0.5, 0.5)
  [1.5, 2.0]
  """
  perturbation = scale_toward_eigenvector(
    rho,
    alpha=alpha,
    refresh_every=refresh_every,
    power_steps=power_steps,
    key=key,
    accumulator_dtype=accumulator_dtype,
  )
  return compose(Choices(perturbation), mask, axis_name, sync_ascent)
