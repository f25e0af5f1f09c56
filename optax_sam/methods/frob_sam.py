"""Frob-SAM: penalizes the variance of the loss around the weights."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine import devices, partition
from optax_sam.engine.info import advance
from optax_sam.engine.loss_view import LossView
from optax_sam.engine.transformation import with_draws
from optax_sam.trees import tree_math
from optax_sam.trees.random_trees import draw_normal


@validation.method('num_samples')
def frob_sam(
  rho: optax.ScalarOrSchedule = 0.005,
  *,
  penalty: float = 0.005,
  num_samples: int = 2,
  key: jax.Array | int,
  mask: partition.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  r"""Frob-SAM: penalizes the variance of the loss around the weights.

  .. math::
    L_i &= L(w + \rho z_i), \quad g_i = \nabla L(w + \rho z_i) \\
    c &= \sum_i (L_i - \bar L) (g_i - \bar g) / (n - 1) \\
    u &= g + (\lambda / \rho^2)\, c, \quad g = \nabla L(w)

  :math:`z_i` is standard normal, redrawn every step; :math:`\bar L` and
  :math:`\bar g` are means over the :math:`n` samples, so :math:`c` is half of
  the gradient of the variance. To leading order, :math:`u` is the gradient of
  :math:`L + \frac{\lambda}{2} \|\nabla L\|^2 + \frac{\lambda \rho^2}{4}
  \|H\|_F^2`, with the Hessian :math:`H` and its Frobenius norm. A factor on the
  loss changes the relative weight of the penalty. `rho=0` gives :math:`u = g`.
  If the penalty overflows although losses and gradients are finite, it is
  omitted.

  Args:
    rho: standard deviation of each entry of a perturbation, at least 0, or a
      schedule of it. With N entries a perturbation is `rho * sqrt(N)` long.
    penalty: weight :math:`\lambda`, at least 0; 0 is the base optimizer.
    num_samples: number n of directions, at least 2.
    key: integer seed or typed key, the same on all devices.
    mask, axis_name, sync_ascent: see `optax_sam.sharpness_aware`. With
      `sync_ascent` `L_i` and `g_i` are averaged before they are multiplied.

  Returns:
    A gradient transformation to place first in `optax.chain`, whose `update`
    needs `value_fn`, or a `grad_fn` that returns (loss, gradient); state: the
    key. It costs 1 + `num_samples` gradients, all in memory at once.

  .. note:: The rule and the defaults were read in published sources; no code
    was run.

  References:
    Tahmasebi et al., `A Universal Class of Sharpness-Aware Minimization
    Algorithms <https://arxiv.org/abs/2406.03682>`_, ICML 2024.

  >>> import jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.frob_sam(rho=0.1, penalty=0.5, num_samples=2, key=0)
  >>> g, w = jnp.float32(3.0), jnp.float32(1.0)
  >>> u, _ = tx.update(g, tx.init(w), w, value_fn=lambda w: 3 * w)
  >>> float(u)  # all gradients are equal: nothing is added
  3.0
  """
  validation.check_radius(rho)
  validation.check_number('penalty', penalty, at_least=0)
  validation.check_static_integer('num_samples', num_samples, at_least=2)
  validation.check_key(key)
  validation.check_sync_ascent(sync_ascent, axis_name)

  def step(view: LossView, clean: Any, state: Any, count: Any, key: Any) -> Any:
    leaves = view.leaves
    w = leaves.split(view.params)
    radius = validation.at_step(rho, count)
    samples = []
    for sample in range(num_samples):
      z = draw_normal(key, sample, leaves.inside(w))
      scaled = jax.tree.map(lambda x: jnp.asarray(radius, x.dtype) * x, z)
      samples.append(view.loss_and_grad(leaves.move(w, scaled), 'frob_sam'))
    if sync_ascent:
      clean, samples = devices.average((clean, samples), axis_name)
    norm = tree_math.norm(leaves.inside(clean))

    values, gradients = zip(*samples, strict=True)
    losses = tree_math.widen(jnp.stack(values))
    number = lambda x: jnp.asarray(x, losses.dtype)
    loss, radius = jnp.mean(losses), number(radius)
    moves = radius > 0
    weight = number(penalty) / (num_samples - 1)
    weight /= jnp.square(jnp.where(moves, radius, 1))
    weights = jnp.where(moves, weight * (losses - loss), 0)

    def added(g: jax.Array, *samples: jax.Array) -> jax.Array:
      dtype = tree_math.wide_dtype(g, *samples)
      wide = [x.astype(dtype) for x in samples]
      mean = sum(wide[1:], wide[0]) / len(wide)
      pairs = zip(weights.astype(dtype), wide, strict=True)
      terms = [weight * (x - mean) for weight, x in pairs]
      return sum(terms[1:], terms[0])

    total = jax.tree.map(added, clean, *gradients)
    # Terms of huge gradients overflow, and their sum may be inf - inf. Losses
    # or gradients that are not finite must show in the direction.
    overflows = ~tree_math.all_finite(total)
    overflows &= tree_math.all_finite((values, gradients))

    def add(g: jax.Array, total: jax.Array) -> jax.Array:
      total = jnp.where(overflows, 0, total)
      return (g.astype(total.dtype) + total).astype(g.dtype)

    found = jax.tree.map(add, clean, total), norm, loss
    if not sync_ascent:
      found = devices.average(found, axis_name)
    return found[0], advance(state, *found[1:])

  return with_draws(key, step, mask=mask, axis_name=axis_name)
