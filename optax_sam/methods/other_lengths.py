"""Methods that measure the length of the perturbation in another way."""

from typing import Any

import optax

from optax_sam import masking, perturbations
from optax_sam.sharpness_aware import sharpness_aware


def fisher_sam(
  rho: optax.ScalarOrSchedule = 0.1,
  *,
  eta: float = 1.0,
  mask: masking.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Fisher SAM: the perturbation has a length in the Fisher metric.

  With `g` the gradient at `w` and `F = 1 + eta * g^2`, elementwise::

    epsilon = rho * (g / F) / sqrt(sum(g^2 / F))    # sum(F * epsilon^2) = rho^2
    u       = gradient at w + epsilon

  This is the exact maximizer of the linearized loss within that radius. The
  defaults are those of a community port; neither they nor the square of the
  batch gradient, in place of squares of single examples' gradients, could be
  confirmed against the paper. Another port rescales to length `rho`.

  Args:
    rho: radius, at least 0, or a schedule of it.
    eta: weight of the squared gradient, at least 0; 0 is SAM.
    mask: which leaves may be perturbed; see `optax_sam.sharpness_aware`.
    axis_name: axis of `jax.pmap` or `jax.shard_map` to average over.
    sync_ascent: whether the ascent gradient is averaged over that axis too.

  Returns:
    A gradient transformation, to be placed first in `optax.chain`; its
    `update` needs `value_fn` or `grad_fn`. Cost: 2 gradients.

  Raises:
    ValueError: if a Python value is out of range.

  References:
    Kim, Li, Hu, Hospedales, `Fisher SAM: Information Geometry and
    Sharpness-Aware Minimisation <https://arxiv.org/abs/2206.04920>`_, ICML
    2022.

  >>> import jax, jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.fisher_sam(rho=0.5, eta=0.0)
  >>> loss = lambda w: jnp.sum(w**2)
  >>> w = jnp.array([3.0, 4.0])
  >>> u, _ = tx.update(jax.grad(loss)(w), tx.init(w), w, value_fn=loss)
  >>> [round(x, 3) for x in u.tolist()]
  [6.6, 8.8]
  """
  return sharpness_aware(
    perturbations.scale_to_fisher_radius(rho, eta=eta),
    mask=mask,
    axis_name=axis_name,
    sync_ascent=sync_ascent,
  )


def unnormalized_sam(
  rho: optax.ScalarOrSchedule,
  *,
  clip: bool = False,
  mask: masking.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """SAM without normalization: the perturbation fades with the gradient.

  With `g` the gradient at `w`::

    epsilon = rho * g                # clip=True: shortened to length rho
    u       = gradient at w + epsilon

  A factor on the loss changes `epsilon`, so mind the scale of the loss.

  Args:
    rho: factor, at least 0, or a schedule of it; there is no default.
    clip: whether a perturbation longer than `rho` is shortened to it, as on
      one path of the authors' program.
    mask: which leaves may be perturbed; see `optax_sam.sharpness_aware`.
    axis_name: axis of `jax.pmap` or `jax.shard_map` to average over.
    sync_ascent: whether the ascent gradient is averaged over that axis too.

  Returns:
    A gradient transformation, to be placed first in `optax.chain`; its
    `update` needs `value_fn` or `grad_fn`. Cost: 2 gradients.

  Raises:
    ValueError: if a Python value is out of range.

  References:
    Andriushchenko, Flammarion, `Towards Understanding Sharpness-Aware
    Minimization <https://arxiv.org/abs/2206.06232>`_, ICML 2022.

  >>> import jax, jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.unnormalized_sam(0.5)
  >>> loss = lambda w: jnp.sum(w**2)
  >>> w = jnp.array([3.0, 4.0])
  >>> u, _ = tx.update(jax.grad(loss)(w), tx.init(w), w, value_fn=loss)
  >>> [round(x, 3) for x in u.tolist()]  # 2 * (w + 0.5 * 2 * w)
  [12.0, 16.0]
  """
  return sharpness_aware(
    perturbations.scale_by_radius(rho, clip=clip),
    mask=mask,
    axis_name=axis_name,
    sync_ascent=sync_ascent,
  )
