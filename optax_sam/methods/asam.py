"""ASAM: SAM with a radius relative to the size of each parameter."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine import partition
from optax_sam.engine.perturbation import with_radius
from optax_sam.engine.sharpness_aware import Choices, compose
from optax_sam.trees import tree_math


def scale_to_adaptive_radius(
  rho: optax.ScalarOrSchedule,
  *,
  eta: float = 0.01,
  scaled: partition.Mask = None,
) -> optax.GradientTransformationExtraArgs:
  """Scales the ascent gradient to the radius of `optax_sam.asam`."""
  validation.check_number('eta', eta, at_least=0)

  def scales(is_scaled: bool, weight: jax.Array) -> jax.Array:
    wide = tree_math.widen(weight)
    if not is_scaled:
      return jnp.ones_like(wide)
    return jnp.abs(wide) + jnp.asarray(eta, wide.dtype)

  def perturb(radius: Any, updates: Any, *, params: Any, **_: Any) -> Any:
    mask = _scaled_by_name if scaled is None else scaled
    chosen = partition.chosen_leaves(mask, params, name='scaled')
    scale = jax.tree.map(scales, chosen, params)
    wide = tree_math.widen_like(updates, scale)
    once = jax.tree.map(jnp.multiply, scale, wide)
    twice = jax.tree.map(jnp.multiply, scale, once)
    perturbation = tree_math.scale_to(radius, twice, tree_math.norm(once))
    return optax.tree.cast_like(perturbation, updates)

  return with_radius(rho, perturb)


def _scaled_by_name(params: optax.Params) -> Any:
  unscaled = ['bias'], ['b'], ['beta'], ['offset']
  is_scaled = lambda path, _: partition.path_parts(path)[-1:] not in unscaled
  return jax.tree_util.tree_map_with_path(is_scaled, params)


@validation.method('scaled')
def asam(
  rho: optax.ScalarOrSchedule = 0.5,
  *,
  eta: float = 0.01,
  scaled: partition.Mask = None,
  mask: partition.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  r"""Adaptive SAM (ASAM): a radius relative to the size of the weights.

  Rescaling layers without changing the function does not change the sharpness.

  .. math::
    T &= |w| + \eta \text{ on scaled leaves, else } 1 \\
    \epsilon &= \rho\, T^2 g / (\|T g\| + 10^{-12}), \quad g = \nabla L(w) \\
    \tilde g &= \nabla L(w + \epsilon)

  Args:
    rho: length of :math:`\epsilon / T`, at least 0, or a schedule. 0.5 is the
      authors' default, also for CIFAR-10; they use 1.0 for CIFAR-100.
    eta: at least 0; 0.01 in the authors' class, 0 in their example script.
    scaled: leaves to scale: a bool, a prefix tree of bools, or a function from
      parameters to one; None for all leaves except those named `bias`, `b`,
      `beta` or `offset`.
    mask, axis_name, sync_ascent: see `optax_sam.sharpness_aware`.

  Returns:
    A gradient transformation to place first in `optax.chain`, whose `update`
    needs `value_fn` or `grad_fn`; stateless. It costs 2 gradients.

  .. note:: The authors' code scales only parameters with "weight" in their
    name, not a weight called `w`; the author has confirmed which leaves are
    scaled. `asam(2.0, eta=0.0, scaled=True)` is davda54/sam, which does not
    perturb a bias of zero; `scaled=True` alone is dbahri/universal_sam. The
    rule `rho * abs(w) * g / norm(g)` is not ASAM. Unverified: the rule of the
    paper.

  References:
    Kwon et al., `ASAM: Adaptive Sharpness-Aware Minimization for
    Scale-Invariant Learning of Deep Neural Networks
    <https://arxiv.org/abs/2102.11600>`_, ICML 2021.

  >>> import jax.numpy as jnp, optax_sam
  >>> tx, w = optax_sam.asam(rho=0.5, eta=0.0), jnp.array([3.0, 4.0])
  >>> u, _ = tx.update(jnp.ones(2), tx.init(w), w, grad_fn=lambda w: w)
  >>> [round(x, 3) for x in u.tolist()]  # w + 0.5 * w^2 / 5
  [3.9, 5.6]
  """
  perturbation = scale_to_adaptive_radius(rho, eta=eta, scaled=scaled)
  return compose(Choices(perturbation), mask, axis_name, sync_ascent)
