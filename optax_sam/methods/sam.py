"""SAM: perturbs along the gradient, once or in several steps."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine import partition
from optax_sam.engine.perturbation import ascent_step, with_radius
from optax_sam.engine.sharpness_aware import sharpness_aware
from optax_sam.trees import tree_math


def sam(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  p: float = 2,
  ascent_steps: int = 1,
  mask: partition.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Sharpness-aware minimization (SAM): descends from a worse point close by.

  With `g` the gradient at the parameters `w`::

    epsilon = rho * g / (norm(g) + 1e-12)         # p = inf: rho * sign(g)
    u       = gradient at w + epsilon             # epsilon held constant

  With `ascent_steps = k` above 1, `epsilon` is the `delta` that k such steps
  reach from 0, with `h` the gradient at `w + delta`, at first `g`::

    delta = delta + rho * h / (norm(h) + 1e-12)  # p = inf: rho * sign(h)
    delta = delta * min(1, rho / norm(delta))  # p = inf: clipped to +-rho

  Six published programs agree with one another and with this rule; the
  appendix of the paper prints a squared norm in one place, against its own
  equation 2. Differentiating through `epsilon` gave the authors worse results.
  The length of several steps and the projection are those of Andriushchenko
  and Flammarion (2022, arXiv 2206.06232); `optax.contrib.sam` doesn't project.

  Args:
    rho: radius in the unit of the parameters, a scalar of at least 0, or a
      schedule of it by the step. 0.05 is the authors' default, and theirs for
      ImageNet; their grid runs from 0.01 to 0.5, and noisy labels want 0.1.
    p: 2 or infinity, the norm in which `epsilon` has length `rho`. 2 is that
      of the six programs.
    ascent_steps: number of ascent steps, at least 1; those programs take 1.
    mask: leaves that may be perturbed; see `optax_sam.sharpness_aware`.
    axis_name: device axis to average over; see `optax_sam.sharpness_aware`.
    sync_ascent: whether the ascent gradient is averaged too; see there.

  Returns:
    A gradient transformation, to be placed first in `optax.chain`; its
    `update` needs `value_fn` or `grad_fn`. Cost: 1 + `ascent_steps` gradients.
    Keeps nothing.

  Raises:
    ValueError: if a Python value is out of range, and in `update` if what it
      needs was not passed.

  References:
    Foret, Kleiner, Mobahi, Neyshabur, `Sharpness-Aware Minimization for
    Efficiently Improving Generalization <https://arxiv.org/abs/2010.01412>`_,
    ICLR 2021. Smaller parts of the batch with an `epsilon` of their own
    generalized better there: see `m_sam`.

  >>> import jax, jax.numpy as jnp, optax, optax_sam
  >>> tx = optax.chain(optax_sam.sam(rho=0.5), optax.sgd(0.1))
  >>> loss = lambda w: jnp.sum(w**2)
  >>> w = jnp.array([3.0, 4.0])
  >>> updates, state = tx.update(
  ...   jax.grad(loss)(w), tx.init(w), w, value_fn=loss
  ... )
  >>> [round(x, 3) for x in updates.tolist()]  # -0.1 * 2 * (w + 0.5 * w / 5)
  [-0.66, -0.88]
  """
  validation.check_static_integer('ascent_steps', ascent_steps)
  return sharpness_aware(
    ascend_repeatedly(rho, ascent_steps, p=p),
    mask=mask,
    axis_name=axis_name,
    sync_ascent=sync_ascent,
  )


def ascend_repeatedly(
  rho: optax.ScalarOrSchedule, steps: int, *, p: float = 2
) -> optax.GradientTransformationExtraArgs:
  """Takes several ascent steps of length rho inside the ball of radius rho.

  `steps` times, starting from `delta = 0` and with `h` the ascent gradient at
  `w + delta`; the last `delta` is epsilon::

    delta = delta + rho * h / (norm(h) + 1e-12)
    delta = delta * min(1, rho / norm(delta))

    p = inf:  delta = clip(delta + rho * sign(h), -rho, rho)

  Each step but the first costs one more gradient. Length and projection are
  those of the program tml-epfl/understanding-sam; `optax.contrib.sam` doesn't
  project.

  Args:
    rho: radius and length of a step in the unit of the parameters, a scalar of
      at least 0 or a schedule of it by the step of training, counted from 0.
      With a schedule these gradients are taken at every step of training, also
      where a policy skips.
    steps: number of ascent steps, a Python int of at least 1; 1 is SAM.
    p: 2 or infinity, the norm of the ball.

  Returns:
    A perturbation, for `optax_sam.sharpness_aware` alone if it takes more than
    one step. Keeps nothing, or the count of the schedule.

  Raises:
    ValueError: if a Python value is out of range, and in `update` if there is
      no `ascent_grad_fn` for the second step.

  References:
    Andriushchenko, Flammarion, `Towards Understanding Sharpness-Aware
    Minimization <https://arxiv.org/abs/2206.06232>`_, ICML 2022.

  With gradients `[1, 0]`, then `[0, 1]`:

  >>> piece = ascend_repeatedly(0.5, 2)
  >>> epsilon, _ = piece.update(
  ...   jnp.array([1.0, 0.0]),
  ...   piece.init(None),
  ...   ascent_grad_fn=lambda delta: jnp.array([0.0, 1.0]),
  ... )
  >>> [round(x, 3) for x in epsilon.tolist()]  # [0.5, 0.5], projected
  [0.354, 0.354]
  """
  validation.check_static_integer('steps', steps)
  validation.check_choice('p', p, (2, float('inf')))

  def perturb(
    radius: Any,
    updates: optax.Updates,
    *,
    ascent_grad_fn: Callable[[optax.Updates], optax.Updates] | None = None,
    **_: Any,
  ) -> optax.Updates:
    # Half precision would round the sum of the steps away.
    wide = updates if steps == 1 else jax.tree.map(tree_math.widen, updates)
    delta = ascent_step(radius, wide, p)
    for _step in range(1, steps):
      if ascent_grad_fn is None:
        msg = (
          'ascend_repeatedly needs ascent_grad_fn, a function from the '
          'perturbation to the ascent gradient there: use it as the '
          'perturbation of optax_sam.sharpness_aware, which passes it.'
        )
        raise ValueError(msg)
      gradient = jax.tree.map(tree_math.widen, ascent_grad_fn(delta))
      step = ascent_step(radius, gradient, p)
      delta = _project(radius, tree_math.add(delta, step), p)
    return tree_math.cast_like(delta, updates)

  return with_radius(rho, perturb)


def _project(radius: Any, delta: optax.Updates, p: float) -> optax.Updates:
  return _into_ball(radius, delta) if p == 2 else _into_box(radius, delta)


@jax.jit
def _into_ball(radius: Any, delta: optax.Updates) -> optax.Updates:
  size = tree_math.norm(delta)
  radius = jnp.asarray(radius, size.dtype)
  outside = size > radius
  scale = jnp.where(outside, radius / jnp.where(outside, size, 1), 1)
  return tree_math.multiply_where(jnp.isfinite(size), scale, delta)


@jax.jit
def _into_box(radius: Any, delta: optax.Updates) -> optax.Updates:
  def clip(leaf: jax.Array) -> jax.Array:
    bound = jnp.asarray(radius, leaf.dtype)
    return jnp.clip(leaf, -bound, bound)

  return jax.tree.map(clip, delta)
