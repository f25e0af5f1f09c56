"""Methods that perturb some of the entries of the parameters only."""

from typing import Any

import jax
import optax

from optax_sam import masking, perturbations
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
  """Sparse SAM by Fisher information (SSAM-F).

  With `g` the gradient at `w`, `l_j` the losses of single examples, `t` the
  step, counted from 0, and `N` the number of entries that may be perturbed::

    every refresh_every steps, t = 0 included:
      F    = sum over the first num_samples examples of (gradient of l_j at w)^2
      mask = the floor((1 - sparsity) * N) largest of F
    epsilon = mask * rho * g / (norm(g) + 1e-12)
    u       = gradient at w + epsilon

  The norm is that of the full gradient: the perturbation is shorter than
  `rho`. The reverse order of the two pieces,
  `chain(keep_top_fisher(...), scale_to_radius(rho))`, has the constant radius.
  All parameters are updated, and no gradient is saved: this buys no speed.

  The authors' program starts with an empty mask and refreshes after a step,
  draws fresh examples, and adds the first example's gradient to a leftover one
  before squaring; none of this is reproduced. Its counts are. The initial
  mask, the timing and `num_samples` of the paper could not be confirmed.

  Args:
    rho: radius, at least 0, or a schedule of it.
    sparsity: share of the entries that is not perturbed, in [0, 1]: 0 is SAM,
      1 the base optimizer. 0.5 is the authors' headline.
    num_samples: number of examples for the Fisher information, at most those
      of the batch; the authors' README has 16 and 128.
    refresh_every: number of steps from one mask to the next, at least 1; the
      authors' README: one epoch.
    pattern: 'global', or 'n:m' such as '2:4' for n of every m consecutive
      inputs of a unit, whatever `sparsity` says.
    mask: which leaves may be perturbed; see `optax_sam.sharpness_aware`.
    axis_name: axis of `jax.pmap` or `jax.shard_map` to average over; each
      device squares the gradients of its share of the examples.
    sync_ascent: whether the ascent gradient is averaged over that axis too.

  Returns:
    A gradient transformation, to be placed first in `optax.chain`; its
    `update` needs `per_example_value_fn` and `batch`. With batch
    norm the former should use the running statistics, since one example has
    no variance, beside a `value_fn` in training mode. Cost: 2 gradients and
    `num_samples` examples' at a refresh; keeps a mask of bools.

  Raises:
    ValueError: if a Python value is out of range.

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
  """Sparse SAM by dynamic sparse training (SSAM-D).

  With `g` the gradient at `w`, `t` the step, counted from 0,
  `T = total_steps`, `N` the number of entries that may be perturbed, and
  `a = floor((1 - sparsity) * N)` of them in the mask, at first at random::

    epsilon = mask * rho * g / (norm(g) + 1e-12)
    u       = gradient at w + epsilon
    every refresh_every steps, t = 0 included, for the steps that follow:
      d = min(floor(a * drop_rate / 2 * (1 + cos(pi * min(t / T, 1)))), N - a)
      d entries of the mask with the smallest abs(g) are dropped,
      d that were outside are grown, uniformly at random

  The norm is that of the full gradient: the perturbation is shorter than
  `rho`. All parameters are updated, and no gradient is saved. Exactly `a`
  entries are perturbed at every step; in the authors' program the count drifts
  and falls below the target where `sparsity < r / (1 + r)`, with `r` the share
  that is moved. The defaults are those of its command line; whether they are
  the paper's could not be confirmed.

  Args:
    rho: radius, at least 0, or a schedule of it.
    sparsity: share of the entries that is not perturbed, in [0, 1].
    drop_rate: share of the mask that the first refresh moves, in (0, 1].
    refresh_every: number of steps from one mask to the next, at least 1.
    total_steps: T, number of steps of the whole training, at least 1.
    key: integer seed or typed key, the same on all devices.
    mask: which leaves may be perturbed; see `optax_sam.sharpness_aware`.
    axis_name: axis of `jax.pmap` or `jax.shard_map` to average over.
    sync_ascent: whether the ascent gradient is averaged over that axis too.

  Returns:
    A gradient transformation, to be placed first in `optax.chain`; its
    `update` needs `value_fn` or `grad_fn`. Cost: 2 gradients;
    keeps a mask of bools.

  Raises:
    ValueError: if a Python value is out of range.

  References:
    Mi, Shen, Ren, Zhou, Sun, Ji, Tao, `Make Sharpness-Aware Minimization
    Stronger: A Sparsified Perturbation Approach
    <https://arxiv.org/abs/2210.05177>`_, NeurIPS 2022.

  >>> import jax, jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.sparse_sam_dynamic(
  ...   sparsity=0.75, refresh_every=1, total_steps=10, key=0
  ... )
  >>> loss = lambda w: jnp.sum(w**4)
  >>> w = jnp.ones(8)
  >>> _, state = tx.update(jax.grad(loss)(w), tx.init(w), w, value_fn=loss)
  >>> int(state.perturbation[1].mask.sum())
  2
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
