"""Methods that perturb some of the entries of the parameters only."""

from typing import Any, Literal

import jax
import optax

from optax_sam import masking, perturbations, validation
from optax_sam.sharpness_aware import sharpness_aware


def sparse_sam_fisher(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  sparsity: float = 0.5,
  num_samples: int = 128,
  refresh_every: int,
  pattern: str = 'global',
  mask: masking.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Sparse SAM by Fisher information (SSAM-F): perturbs what matters most.

  With `g` the gradient at `w`, `l_j` the losses of single examples with their
  true labels, `t` the step, counted from 0, and `N` the number of entries that
  may be perturbed::

    every refresh_every steps, t = 0 included:
      F    = sum over the first num_samples examples of (gradient of l_j at w)^2
      mask = the floor((1 - sparsity) * N) largest of F   # ties by position
    epsilon = mask * rho * g / (norm(g) + 1e-12)
    u       = gradient at w + epsilon

  The norm is that of the full gradient and nothing is rescaled, so `epsilon`
  is shorter than `rho`: `rho * norm(mask * g) / norm(g)`. For a constant
  length join the two pieces the other way round, as in
  `chain(keep_top_fisher(...), scale_to_radius(rho))`. All parameters are
  updated, and no gradient is saved: this buys no speed. A score that isn't
  finite leaves the mask as it was.

  Rule and count are those of the authors' program, but for the error of its
  floating-point count, which is 0 of 10 entries at `sparsity=0.9`. It also
  starts with an empty mask and refreshes after a step, so that its first step
  isn't perturbed; it draws fresh examples; and it adds the first example's
  gradient to a leftover one before squaring. These are not reproduced. Initial
  mask, refresh timing, `num_samples` and `rho` of the paper could not be
  confirmed. The groups of 'n:m' run along the inputs of a unit, also in
  convolutions, where the authors' follow-up (arXiv 2306.17504) groups along
  another axis.

  Args:
    rho: radius in the unit of the parameters, a scalar of at least 0, or a
      schedule of it by the step. 0.05 is SAM's. The authors' README has 0.7 for
      ImageNet, perhaps a slip for 0.07.
    sparsity: share of the entries that is not perturbed, in [0, 1]: 0 is SAM,
      1 the base optimizer. 0.5 is the authors' headline; they tried 0.5 to
      0.99.
    num_samples: number of examples in F, at least 1; no more than the batch
      has are taken. The authors' README has 16 and 128, and up to 1024.
    refresh_every: number of steps from one mask to the next, at least 1. The
      authors' README: one epoch; they tried 1 to 10.
    pattern: 'global', or 'n:m' such as '2:4' for the n largest of every m
      consecutive inputs of a unit, whatever `sparsity` says. Leaves with fewer
      than two axes, or whose inputs m doesn't divide, are perturbed whole.
    mask: leaves that may be perturbed; see `optax_sam.sharpness_aware`.
    axis_name: device axis to average over; see `optax_sam.sharpness_aware`.
    sync_ascent: whether the ascent gradient is averaged too; see there.
      Of the examples in F each device takes an equal share, from its own.

  Returns:
    A gradient transformation, to be placed first in `optax.chain`; its
    `update` needs `per_example_value_fn` and `batch`. With batch norm the
    former should use the running statistics, since one example has no
    variance, beside a `value_fn` in training mode. Cost:
    2 + `num_samples` / (examples of the batch * `refresh_every`) gradients.
    Keeps a mask of bools.

  Raises:
    ValueError: if a Python value is out of range, and in `update` if what it
      needs was not passed.

  References:
    Mi, Shen, Ren, Zhou, Sun, Ji, Tao, `Make Sharpness-Aware Minimization
    Stronger: A Sparsified Perturbation Approach
    <https://arxiv.org/abs/2210.05177>`_, NeurIPS 2022.

  >>> import jax, jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.sparse_sam_fisher(sparsity=0.5, refresh_every=10)
  >>> losses = lambda w, x: jnp.square(x @ w)
  >>> w, x = jnp.ones(4), jnp.array([[1.0, 4.0, 2.0, 3.0]])
  >>> g = jax.grad(lambda w: losses(w, x).mean())(w)
  >>> _, state = tx.update(
  ...   g, tx.init(w), w, per_example_value_fn=losses, batch=x
  ... )
  >>> state.perturbation[1].mask.tolist()
  [False, True, False, True]
  """
  return sharpness_aware(
    optax.chain(
      perturbations.scale_to_radius(rho),
      perturbations.keep_top_fisher(
        sparsity,
        num_samples=num_samples,
        refresh_every=refresh_every,
        pattern=pattern,
      ),
    ),
    mask=mask,
    axis_name=axis_name,
    sync_ascent=sync_ascent,
  )


def sparse_sam_dynamic(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  sparsity: float = 0.5,
  drop_rate: float = 0.5,
  refresh_every: int,
  total_steps: int,
  key: jax.Array | int,
  mask: masking.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Sparse SAM by dynamic sparse training (SSAM-D): a mask that wanders.

  With `g` the gradient at `w`, `t` the step, counted from 0,
  `T = total_steps`, `N` the number of entries that may be perturbed, and
  `a = floor((1 - sparsity) * N)` of them in the mask, at first at random::

    epsilon = mask * rho * g / (norm(g) + 1e-12)
    u       = gradient at w + epsilon
    every refresh_every steps, t = 0 included, for the steps that follow:
      r = drop_rate / 2 * (1 + cos(pi * min(t / T, 1)))
      d = min(floor(a * r), N - a)
      d entries of the mask with the smallest abs(g) are dropped,
      d that were outside before are grown, uniformly at random

  The norm is that of the full gradient and nothing is rescaled, so `epsilon`
  is shorter than `rho`: `rho * norm(mask * g) / norm(g)`. All parameters are
  updated, and no gradient is saved: this buys no speed. A gradient that is 0
  or not finite leaves the mask as it was.

  Exactly `a` entries are perturbed at every step. In the authors' program the
  count drifts by one and, as only growth is limited to what is left, falls
  below the target where `sparsity < r / (1 + r)`. `keep_dynamic` also drops
  and grows by the size of the weights, which that program reads while they are
  perturbed.

  Args:
    rho: radius in the unit of the parameters, a scalar of at least 0, or a
      schedule of it by the step. 0.05 is SAM's; the paper's per data set could
      not be confirmed.
    sparsity: share of the entries that is not perturbed, in [0, 1]: 0 is SAM,
      1 the base optimizer. 0.5 is the default of the authors' command line;
      whether it is the paper's could not be confirmed, nor for `drop_rate`.
    drop_rate: share of the mask that the first refresh moves, in (0, 1]. 0.5
      is the default of the authors' command line.
    refresh_every: number of steps from one mask to the next, at least 1.
    total_steps: T, number of steps of the whole training, at least 1.
    key: integer seed or typed key, the same on all devices.
    mask: leaves that may be perturbed; see `optax_sam.sharpness_aware`.
    axis_name: device axis to average over; see `optax_sam.sharpness_aware`.
    sync_ascent: whether the ascent gradient is averaged too; see there.
      The entries are dropped by the average in any case.

  Returns:
    A gradient transformation, to be placed first in `optax.chain`; its
    `update` needs `value_fn` or `grad_fn`. Cost: 2 gradients. Keeps a mask of
    bools and the key.

  Raises:
    ValueError: if a Python value is out of range, and in `update` if what it
      needs was not passed.

  References:
    Mi, Shen, Ren, Zhou, Sun, Ji, Tao, `Make Sharpness-Aware Minimization
    Stronger: A Sparsified Perturbation Approach
    <https://arxiv.org/abs/2210.05177>`_, NeurIPS 2022.

  >>> import jax, jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.sparse_sam_dynamic(
  ...   2.0, sparsity=0.75, refresh_every=1, total_steps=10, key=0
  ... )
  >>> w = jnp.zeros(16)
  >>> u, _ = tx.update(jnp.ones(16), tx.init(w), w, grad_fn=lambda w: w)
  >>> sorted(u.tolist())[-5:]  # 4 of the 16, each of 2 / sqrt(16)
  [0.0, 0.5, 0.5, 0.5, 0.5]
  """
  return sharpness_aware(
    optax.chain(
      perturbations.scale_to_radius(rho),
      perturbations.keep_dynamic(
        sparsity,
        drop_rate=drop_rate,
        refresh_every=refresh_every,
        total_steps=total_steps,
        key=key,
      ),
    ),
    mask=mask,
    axis_name=axis_name,
    sync_ascent=sync_ascent,
  )


def z_sharp(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  quantile: float = 0.95,
  radius: Literal['global', 'per_tensor'] = 'global',
  mask: masking.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """ZSharp: perturbs the entries whose gradient stands out from their leaf.

  With `g` the gradient at `w`; in leaves with two axes or more, `z` the number
  of standard deviations that an entry is above the mean of its leaf, and `f =
  g` where `abs(z)` is above that quantile of its leaf, else 0; in the others
  `f = g`::

    'global':      epsilon = rho * f / (norm(f) + 1e-12)    # f = 0: g
    'per_tensor':  epsilon = rho * f / (norm(f) + 1e-12)    # leaf by leaf
                   epsilon = rho * g / (norm(g) + 1e-12)    # with fewer axes
    u = gradient at w + epsilon

  In 'per_tensor', which is what the author's program does, `norm(f)` is that
  of one leaf, so `epsilon` is up to `sqrt(number of leaves) * rho` long. Which
  of the two the paper means could not be confirmed; 'global' is the default as
  there `rho` is the radius, as in all methods here. Of n entries without ties
  `n - 1 - floor((n - 1) * quantile)` are perturbed, found without a sort. All
  parameters are updated, and no gradient is saved: this buys no speed.

  Args:
    rho: radius in the unit of the parameters, a scalar of at least 0, or a
      schedule of it by the step. 0.05 is SAM's.
    quantile: share of the entries of a leaf that is not perturbed, a Python
      number in [0, 1). 0.95 is the author's value.
    radius: whether all leaves together have the length `rho`, or each.
    mask: leaves that may be perturbed; see `optax_sam.sharpness_aware`.
    axis_name: device axis to average over; see `optax_sam.sharpness_aware`.
    sync_ascent: whether the ascent gradient is averaged too; see there.

  Returns:
    A gradient transformation, to be placed first in `optax.chain`; its
    `update` needs `value_fn` or `grad_fn`. Cost: 2 gradients. Keeps nothing.

  Raises:
    ValueError: if a Python value is out of range, and in `update` if what it
      needs was not passed.

  References:
    Yun, `Sharpness-Aware Minimization with Z-Score Gradient Filtering for
    Neural Networks <https://arxiv.org/abs/2505.02369>`_, 2025.

  >>> import jax, jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.z_sharp(rho=0.5, quantile=0.5)
  >>> w, gradient = jnp.zeros((2, 2)), jnp.array([[1.0, -3.0], [2.0, 4.0]])
  >>> u, _ = tx.update(gradient, tx.init(w), w, grad_fn=lambda w: w)
  >>> [[round(x, 3) for x in row] for row in u.tolist()]  # the mean is 1
  [[0.0, -0.3], [0.0, 0.4]]
  """
  validation.check_choice('radius', radius, ('global', 'per_tensor'))
  if radius == 'global':
    perturbation = optax.chain(
      perturbations.keep_outliers(quantile), perturbations.scale_to_radius(rho)
    )
  else:
    perturbation = perturbations.scale_outliers_to_radius(rho, quantile)
  return sharpness_aware(
    perturbation, mask=mask, axis_name=axis_name, sync_ascent=sync_ascent
  )
