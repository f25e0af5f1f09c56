"""Tilted SAM: several perturbations, weighted by the losses there."""

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


@validation.method('num_perturbations')
def tsam(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  num_perturbations: int = 3,
  tilt: float = 1.0,
  noise: float = 20.0,
  key: jax.Array | int,
  mask: partition.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  r"""Tilted SAM (TSAM): several perturbations, weighted by the losses there.

  Each perturbation is a random vector plus an ascent step from there. The
  direction is the gradient of :math:`\frac{1}{t} \log \text{mean}_j \exp(t
  L_j)`.

  .. math::
    n_j &= z_j \min(1, r / \|z_j\|), \quad z_j \sim N(0, r^2 I),
      \quad r = \text{noise} \cdot \rho \\
    h_j &= \nabla L(w + n_j), \quad
      \epsilon_j = n_j + \rho\, h_j / (\|h_j\| + 10^{-12}) \\
    L_j &= L(w + \epsilon_j), \quad
      u = \textstyle\sum_j \text{softmax}(t L)_j\, \nabla L(w + \epsilon_j)

  With `noise=0` it is SAM. The unperturbed gradient is not used.

  Args:
    rho: radius of the ascent step, at least 0, or a schedule of it by the step.
    num_perturbations: number of perturbations, at least 1.
    tilt: :math:`t`, at least 0: 0 is the mean, large values the largest loss.
      The paper searches among 0, 1, 5, 20 and 100.
    noise: largest length of the random vector over `rho`, at least 0. The
      authors use 1 / 0.05.
    key: integer seed or typed key, the same on all devices.
    mask, axis_name, sync_ascent: see `optax_sam.sharpness_aware`. With
      `sync_ascent` `h_j` and `L_j` are averaged too.

  Returns:
    A gradient transformation to place first in `optax.chain`, whose `update`
    needs `value_fn`, or a `grad_fn` that returns (loss, gradient); state: the
    key. It costs 1 + 2 * `num_perturbations` gradients, and memory for all.

  .. note:: This is the rule of the authors' code with noise 'random1', and its
    defaults. The paper's step, known from a restatement, is not normalized.

  References:
    Li et al., `Tilted Sharpness-Aware Minimization
    <https://arxiv.org/abs/2410.22656>`_, ICML 2025.

  >>> import jax.numpy as jnp, optax_sam
  >>> tx, w = optax_sam.tsam(rho=5.0, noise=0.0, key=0), jnp.array([3.0, 4.0])
  >>> loss = lambda w: jnp.sum(w**2) / 2
  >>> u, _ = tx.update(w, tx.init(w), w, value_fn=loss)
  >>> [round(x, 3) for x in u.tolist()]  # w + 5 * w / 5
  [6.0, 8.0]
  """
  validation.check_radius(rho)
  validation.check_static_integer('num_perturbations', num_perturbations)
  validation.check_number('tilt', tilt, at_least=0)
  validation.check_number('noise', noise, at_least=0)
  validation.check_key(key)
  validation.check_sync_ascent(sync_ascent, axis_name)
  synced = axis_name if sync_ascent else None

  def step(view: LossView, clean: Any, state: Any, count: Any, key: Any) -> Any:
    leaves = view.leaves
    w = leaves.split(view.params)
    radius = validation.at_step(rho, count)

    def sample(number: int) -> tuple[Any, Any, Any]:
      z = draw_normal(key, number, leaves.inside(w))
      size = tree_math.norm(z)
      # The standard deviation is the largest length.
      length = jnp.asarray(noise, size.dtype) * jnp.minimum(size, 1)
      n = tree_math.scale_to(jnp.asarray(radius, size.dtype) * length, z)
      start = leaves.move(w, n)
      h = leaves.inside(devices.average(view.value_and_grad(start)[1], synced))
      point = leaves.move(start, tree_math.scale_to(radius, h))
      loss, gradient = view.loss_and_grad(point, 'tsam')
      return devices.average(loss, synced), gradient, tree_math.norm(h)

    samples = [sample(number) for number in range(num_perturbations)]
    losses, gradients, norms = zip(*samples, strict=True)
    losses = tree_math.widen(jnp.stack(losses))
    weights = jax.nn.softmax(jnp.asarray(tilt, losses.dtype) * losses)

    def combine(*gradients: jax.Array) -> jax.Array:
      dtype = tree_math.wide_dtype(*gradients)
      pairs = zip(weights.astype(dtype), gradients, strict=True)
      terms = [weight * x.astype(dtype) for weight, x in pairs]
      return sum(terms[1:], terms[0]).astype(gradients[0].dtype)

    direction = jax.tree.map(combine, *gradients)
    direction = optax.tree.cast_like(direction, clean)
    scalars = jnp.mean(jnp.stack(norms)), jnp.sum(weights * losses)
    if not sync_ascent:
      scalars = devices.average(scalars, axis_name)
    return devices.average(direction, axis_name), advance(state, *scalars)

  return with_draws(key, step, mask=mask, axis_name=axis_name)
