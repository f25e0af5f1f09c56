"""Methods that reuse, in between, what the last second gradient showed."""

from typing import Any, Literal

import optax

from optax_sam import descents, masking, perturbations, policies
from optax_sam.sharpness_aware import sharpness_aware


def look_sam(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  period: int = 5,
  alpha: float = 0.1,
  per_leaf: bool = False,
  mask: masking.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """LookSAM: SAM periodically, its lasting part reused in between.

  With `g` the gradient at `w`, `gp` that at SAM's `w + epsilon`, and `t` the
  step, counted from 0::

    t % period == 0:  gv = gp - (dot(g, gp) / norm(g)^2) * g;   u = gp
    otherwise:        u = g + alpha * (norm(g) / norm(gv)) * gv

  No program by the authors is public, and the text of their algorithm was not
  checked. Ports take norms over all leaves, as here by default, or leaf by
  leaf (`per_leaf=True`). `metrics(opt_state)['descent/ratio']` is
  `norm(gv) / norm(g)`; a sane `alpha` is close to it.

  Args:
    rho: radius, at least 0, or a schedule of it.
    period: number of steps from one SAM step to the next, at least 1. 5 is
      what the paper is quoted with.
    alpha: length of the reused part relative to the gradient, in [0, 1). 0.1
      is what a full search by Becker et al. (2024, arXiv 2401.12033) found;
      the paper's 0.7 belongs to ViT with rho = 1.0 and hardly trains at a
      small radius.
    per_leaf: whether norms and inner products are taken leaf by leaf.
    mask: which leaves may be perturbed; see `optax_sam.sharpness_aware`.
    axis_name: axis of `jax.pmap` or `jax.shard_map` to average over.
    sync_ascent: whether the ascent gradient is averaged over that axis too.

  Returns:
    A gradient transformation, to be placed first in `optax.chain`; its
    `update` needs `value_fn` or `grad_fn`. Cost: 1 + 1 / `period` gradients;
    keeps `gv`.

  Raises:
    ValueError: if a Python value is out of range.

  References:
    Liu, Mai, Chen, Hsieh, You, `Towards Efficient and Scalable
    Sharpness-Aware Minimization <https://arxiv.org/abs/2203.02714>`_, CVPR
    2022.

  >>> import jax, jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.look_sam(period=2)
  >>> loss = lambda w: jnp.sum(w**4)
  >>> w = jnp.array([3.0, 4.0])
  >>> state, took = tx.init(w), []
  >>> for _ in range(4):
  ...   u, state = tx.update(jax.grad(loss)(w), state, w, value_fn=loss)
  ...   took.append(bool(state.info.ascended))
  >>> took
  [True, False, True, False]
  """
  return sharpness_aware(
    perturbations.scale_to_radius(rho),
    policy=policies.every(period),
    descent=descents.reuse_orthogonal(alpha, per_leaf=per_leaf),
    mask=mask,
    axis_name=axis_name,
    sync_ascent=sync_ascent,
  )


def look_layer_sam(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  period: int = 5,
  alpha: float = 0.1,
  rule: Literal['global', 'layer', 'unit'] = 'global',
  max_ratio: float = 20.0,
  mask: masking.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Look-LayerSAM: LookSAM whose ascent is scaled layer by layer.

  A layer is a leaf; with `w_l`, `g_l` its weights and gradient, epsilon of the
  layer is::

    'global':  rho * min(norm(w_l) / norm(g_l), max_ratio) * g_l / norm(g)
    'layer':   rho * norm(w_l) * g_l / norm(g_l)^2
    'unit':    rho * g_l / norm(g_l)

  and 0 where `norm(g_l)`, or but for 'unit' `norm(w_l)`, is 0. The rest is
  `look_sam`. The paper's formula could not be confirmed; 'layer' and 'unit'
  are each the rule of one port. The first two grow as the gradient fades.

  Args:
    rho: radius, at least 0, or a schedule of it.
    period: number of steps from one SAM step to the next, at least 1.
    alpha: length of the reused part relative to the gradient, in [0, 1).
    rule: which of the three.
    max_ratio: bound of the ratio in 'global', above 0; 20 is that of a port.
    mask: which leaves may be perturbed; see `optax_sam.sharpness_aware`.
    axis_name: axis of `jax.pmap` or `jax.shard_map` to average over.
    sync_ascent: whether the ascent gradient is averaged over that axis too.

  Returns:
    A gradient transformation, to be placed first in `optax.chain`; its
    `update` needs `value_fn` or `grad_fn`. Cost: 1 + 1 / `period` gradients;
    keeps the reused part.

  Raises:
    ValueError: if a Python value is out of range.

  References:
    Liu, Mai, Chen, Hsieh, You, `Towards Efficient and Scalable
    Sharpness-Aware Minimization <https://arxiv.org/abs/2203.02714>`_, CVPR
    2022.

  >>> import jax, jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.look_layer_sam(rho=0.5, rule='unit')
  >>> loss = lambda w: jnp.sum(w**2)
  >>> w = jnp.array([3.0, 4.0])
  >>> u, _ = tx.update(jax.grad(loss)(w), tx.init(w), w, value_fn=loss)
  >>> [round(x, 3) for x in u.tolist()]
  [6.6, 8.8]
  """
  return sharpness_aware(
    perturbations.scale_by_trust_ratio_radius(
      rho, rule=rule, max_ratio=max_ratio
    ),
    policy=policies.every(period),
    descent=descents.reuse_orthogonal(alpha),
    mask=mask,
    axis_name=axis_name,
    sync_ascent=sync_ascent,
  )


def ae_look_sam(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  total_steps: int,
  decay: float = 0.9,
  lambda_1: float = 0.0,
  lambda_2: float = 2.0,
  alpha: float = 0.1,
  mask: masking.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """AE-SAM's decisions with LookSAM's reuse in between (AE-LookSAM).

  With AE-SAM's decision in place of a period, `g` the gradient at `w` and
  `gp` that at SAM's `w + epsilon`::

    ascend: gv = gp - (dot(g, gp) / norm(g) ^ 2) * g
    u = gp
    otherwise: u = g + alpha * (norm(g) / norm(gv)) * gv

  For a normally distributed squared gradient norm the expected share of SAM
  steps is 0.195 at the defaults. These, and the exact algorithm, could not be
  confirmed against the paper; "about 20 %" is what it is quoted with.

  Args:
    rho: radius, at least 0, or a schedule of it.
    total_steps: number of steps of the whole training, at least 1.
    decay: weight of the past in both moments, in [0, 1).
    lambda_1: threshold at the end, in standard deviations above the mean.
    lambda_2: threshold at the start, likewise.
    alpha: length of the reused part relative to the gradient, in [0, 1).
    mask: which leaves may be perturbed; the policy sees the whole gradient.
    axis_name: axis of `jax.pmap` or `jax.shard_map` to average over.
    sync_ascent: whether the ascent gradient is averaged over that axis too.

  Returns:
    A gradient transformation, to be placed first in `optax.chain`; its
    `update` needs `value_fn` or `grad_fn`. Cost: 1 + the share of SAM steps;
    keeps two scalars and `gv`.

  Raises:
    ValueError: if a Python value is out of range.

  References:
    Jiang, Yang, Zhang, Kwok, `An Adaptive Policy to Employ Sharpness-Aware
    Minimization <https://arxiv.org/abs/2304.14647>`_, ICLR 2023.

  >>> import jax, jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.ae_look_sam(total_steps=100)
  >>> loss = lambda w: jnp.sum(w**2)
  >>> w = jnp.array([3.0, 4.0])
  >>> u, state = tx.update(jax.grad(loss)(w), tx.init(w), w, value_fn=loss)
  >>> bool(state.info.ascended)
  True
  """
  return sharpness_aware(
    perturbations.scale_to_radius(rho),
    policy=policies.on_sharp_gradients(
      total_steps, decay=decay, lambda_1=lambda_1, lambda_2=lambda_2
    ),
    descent=descents.reuse_orthogonal(alpha),
    mask=mask,
    axis_name=axis_name,
    sync_ascent=sync_ascent,
  )
