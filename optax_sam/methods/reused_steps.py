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
  accumulator_dtype: Any = None,
  mask: masking.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """LookSAM: SAM periodically, its lasting part reused in between.

  With `g` the gradient at `w`, `gp` that at SAM's `w + epsilon`, `t` the step,
  counted from 0, and `gv` 0 at first::

    t % period == 0:  gv = gp - (dot(g, gp) / norm(g)^2) * g;   u = gp
    otherwise:        u = g + alpha * (norm(g) / norm(gv)) * gv

  A `gv` that is mere rounding against `gp` counts as 0, and `gv = 0` gives
  `u = g`. Only its direction matters: whatever `rho` is, what is added has the
  length `alpha * norm(g)`. The ratio `norm(gv) / norm(g)` grows with `rho`,
  about 0.15 at 0.05, 0.4 to 1.2 at 0.2 and 3 at 1.0, and a sane `alpha` is
  close to it: see `metrics(opt_state)['descent/ratio']`.

  No program by the authors is public, and the text of their algorithm was not
  checked. Ports take norms over all leaves, as here by default, or leaf by
  leaf; the latter turn to NaN at a leaf whose gradient is 0, `per_leaf=True`
  doesn't. Some count from 1, leave the sum out of the inner product, or double
  the gradient in between: not reproduced.

  Args:
    rho: radius in the unit of the parameters, a scalar of at least 0, or a
      schedule of it by the step. 0.05 is SAM's.
    period: number of steps from one SAM step to the next, at least 1. 5 is
      what the paper is quoted with.
    alpha: length of the reused part relative to the gradient, in [0, 1). A
      full search found 0.1 and no gain above 0.3; Becker et al. (2024, arXiv
      2401.12033) take 0.1 too. The 0.7 that the paper is quoted with belongs
      to ViT with `rho=1.0` and hardly trains at a small radius.
    per_leaf: whether norms and inner products are taken leaf by leaf.
    accumulator_dtype: dtype that `gv` is kept in, with length 1; None for
      float32 or wider, bfloat16 for half of that memory.
    mask: leaves that may be perturbed; see `optax_sam.sharpness_aware`.
    axis_name: device axis to average over; see `optax_sam.sharpness_aware`.
    sync_ascent: whether the ascent gradient is averaged too; see there.
      `gv` and all descents are of averages; only `epsilon` is a device's own.

  Returns:
    A gradient transformation, to be placed first in `optax.chain`; its
    `update` needs `value_fn` or `grad_fn`. Cost: 1 + 1 / `period` gradients.
    Keeps the direction of `gv`.

  Raises:
    ValueError: if a Python value is out of range, and in `update` if what it
      needs was not passed.

  References:
    Liu, Mai, Chen, Hsieh, You, `Towards Efficient and Scalable
    Sharpness-Aware Minimization <https://arxiv.org/abs/2203.02714>`_, CVPR
    2022.

  >>> import jax, jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.look_sam(period=2, alpha=0.5)
  >>> w, gradient = jnp.zeros(2), jnp.array([2.0, 0.0])
  >>> grad_fn = lambda _: jnp.array([2.0, 3.0])
  >>> state = tx.init(w)
  >>> for _ in range(4):
  ...   u, state = tx.update(gradient, state, w, grad_fn=grad_fn)
  ...   print([round(x, 3) for x in u.tolist()])  # gv = (0, 3)
  [2.0, 3.0]
  [2.0, 1.0]
  [2.0, 3.0]
  [2.0, 1.0]
  """
  return sharpness_aware(
    perturbations.scale_to_radius(rho),
    policy=policies.every(period),
    descent=descents.reuse_orthogonal(
      alpha, per_leaf=per_leaf, accumulator_dtype=accumulator_dtype
    ),
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
  accumulator_dtype: Any = None,
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
  `look_sam`. The paper's formula could not be confirmed: 'global' is a
  second-hand account of it, 'layer' and 'unit' are each the rule of one port.
  The first two grow as 1 / norm(g) while the training converges, and a factor
  on the loss changes them.

  Args:
    rho: factor of the above, for 'unit' the length of a layer's epsilon, a
      scalar of at least 0, or a schedule of it by the step. 0.05 is SAM's.
    period: number of steps from one SAM step to the next, at least 1; 5 as in
      `look_sam`.
    alpha: length of the reused part relative to the gradient, in [0, 1); 0.1
      as in `look_sam`.
    rule: which of the three.
    max_ratio: bound of the ratio in 'global', above 0. 20 is a port's.
    accumulator_dtype: dtype that the reused part is kept in, as in `look_sam`.
    mask: leaves that may be perturbed; see `optax_sam.sharpness_aware`.
    axis_name: device axis to average over; see `optax_sam.sharpness_aware`.
    sync_ascent: whether the ascent gradient is averaged too; see there.
      The reused part is of averages, as in `look_sam`.

  Returns:
    A gradient transformation, to be placed first in `optax.chain`; its
    `update` needs `value_fn` or `grad_fn`. Cost: 1 + 1 / `period` gradients.
    Keeps the reused part.

  Raises:
    ValueError: if a Python value is out of range, and in `update` if what it
      needs was not passed.

  References:
    Liu, Mai, Chen, Hsieh, You, `Towards Efficient and Scalable
    Sharpness-Aware Minimization <https://arxiv.org/abs/2203.02714>`_, CVPR
    2022.

  >>> import jax, jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.look_layer_sam(rho=0.5)
  >>> w = {'a': jnp.array([4.0]), 'b': jnp.array([1.0])}
  >>> gradient = {'a': jnp.array([3.0]), 'b': jnp.array([4.0])}
  >>> u, _ = tx.update(gradient, tx.init(w), w, grad_fn=lambda w: w)
  >>> [round(float(u[name][0]), 3) for name in 'ab']  # each a tenth more
  [4.4, 1.1]
  """
  return sharpness_aware(
    perturbations.scale_by_trust_ratio_radius(
      rho, rule=rule, max_ratio=max_ratio
    ),
    policy=policies.every(period),
    descent=descents.reuse_orthogonal(
      alpha, accumulator_dtype=accumulator_dtype
    ),
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
  accumulator_dtype: Any = None,
  mask: masking.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """AE-SAM's decisions with LookSAM's reuse in between (AE-LookSAM).

  With `g` the gradient at `w`, `gp` that at SAM's `w + epsilon`, the decision
  of `ae_sam` in place of a period, and `gv` 0 at first::

    on ascent:  gv = gp - (dot(g, gp) / norm(g)^2) * g;   u = gp
    otherwise:  u = g + alpha * (norm(g) / norm(gv)) * gv

  For a normally distributed squared gradient norm the expected share of SAM
  steps is 0.195 at the defaults; "about 20 %" is what the paper is quoted
  with. Neither the defaults nor the exact algorithm could be confirmed against
  the paper. At these lambdas the first step ascends if `decay` is at least
  0.75. The rest is as in `ae_sam` and `look_sam`.

  Args:
    rho: radius in the unit of the parameters, a scalar of at least 0, or a
      schedule of it by the step. 0.05 is SAM's.
    total_steps: T, number of steps of the whole training, at least 1.
    decay: weight of the past in both moments, in [0, 1).
    lambda_1: threshold at the end, in standard deviations above the mean.
    lambda_2: threshold at the start, likewise.
    alpha: length of the reused part relative to the gradient, in [0, 1); 0.1
      as in `look_sam`.
    accumulator_dtype: dtype that `gv` is kept in, with length 1; None for
      float32 or wider, bfloat16 for half of that memory.
    mask: leaves that may be perturbed; see `optax_sam.sharpness_aware`.
    axis_name: device axis to average over; see `optax_sam.sharpness_aware`.
    sync_ascent: whether the ascent gradient is averaged too; see there.
      The decision, `gv` and all descents are of averages.

  Returns:
    A gradient transformation, to be placed first in `optax.chain`; its
    `update` needs `value_fn` or `grad_fn`. Cost: 1 + the share of SAM steps.
    Keeps two scalars and the direction of `gv`.

  Raises:
    ValueError: if a Python value is out of range, and in `update` if what it
      needs was not passed.

  Warns:
    UserWarning: if a lambda is so large that no step ascends.

  References:
    Jiang, Yang, Zhang, Kwok, `An Adaptive Policy to Employ Sharpness-Aware
    Minimization <https://arxiv.org/abs/2304.14647>`_, ICLR 2023.

  >>> import jax, jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.ae_look_sam(total_steps=100, alpha=0.5)
  >>> w, grad_fn = jnp.zeros(2), lambda _: jnp.array([2.0, 3.0])
  >>> state = tx.init(w)
  >>> for size in (2.0, 0.2):  # at the second step no SAM, but gv = (0, 3)
  ...   gradient = jnp.array([size, 0.0])
  ...   u, state = tx.update(gradient, state, w, grad_fn=grad_fn)
  ...   print([round(x, 3) for x in u.tolist()])
  [2.0, 3.0]
  [0.2, 0.1]
  """
  return sharpness_aware(
    perturbations.scale_to_radius(rho),
    policy=policies.on_sharp_gradients(
      total_steps, decay=decay, lambda_1=lambda_1, lambda_2=lambda_2
    ),
    descent=descents.reuse_orthogonal(
      alpha, accumulator_dtype=accumulator_dtype
    ),
    mask=mask,
    axis_name=axis_name,
    sync_ascent=sync_ascent,
  )
