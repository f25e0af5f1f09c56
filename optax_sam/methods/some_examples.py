"""Methods that descend on some of the examples, the hardest ones."""

from typing import Any

import jax
import optax

from optax_sam import masking, perturbations, selections, validation
from optax_sam.sharpness_aware import sharpness_aware


def k_sam(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  ascent: float,
  descent: float,
  mask: masking.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """K-SAM: both gradients over the examples with the largest losses.

  With `l_i(w)` the losses of the batch, ranked once, at `w`, and `Q1`, `Q2`
  the `ascent` and the `descent` examples with the largest ones::

    g1      = gradient of the mean of l_i over Q1 at w
    epsilon = rho * g1 / (norm(g1) + 1e-12)
    u       = gradient of the mean of l_i over Q2 at w + epsilon

  A loss that isn't finite ranks last; ties go to the lower index. The incoming
  gradient is not used: in a jitted step XLA drops its backward pass, and the
  ranking shares the forward pass of the clean loss. No program is public, the
  sizes of the paper could not be read, and the mean (rather than the sum) over
  the examples could not be confirmed.

  Args:
    rho: radius, at least 0, or a schedule of it.
    ascent: size of Q1: a number of examples if an int, a fraction of the batch
      in (0, 1] if a float. 1 is one example, 1.0 all of them.
    descent: size of Q2, likewise. A third each costs as much as plain descent.
    mask: which leaves may be perturbed; see `optax_sam.sharpness_aware`.
    axis_name: axis of `jax.pmap` or `jax.shard_map` to average over; each
      device ranks its own examples.
    sync_ascent: whether the ascent gradient is averaged over that axis too.

  Returns:
    A gradient transformation, to be placed first in `optax.chain`; its
    `update` needs `per_example_value_fn` and `batch`. Cost in gradients:
    (1 + 3 * ascent + 3 * descent) / 3, sizes as fractions.

  Raises:
    ValueError: if a Python value is out of range.

  References:
    Ni, Chiang, Geiping, Goldblum, Wilson, Goldstein, `K-SAM: Sharpness-Aware
    Minimization at the Speed of SGD <https://arxiv.org/abs/2210.12864>`_,
    2022.

  >>> import jax, jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.k_sam(rho=0.5, ascent=1, descent=1)
  >>> losses = lambda w, batch: jnp.square(w - batch)
  >>> w, batch = jnp.float32(0.0), jnp.array([1.0, -3.0, 2.0])
  >>> u, _ = tx.update(
  ...   w, tx.init(w), w, per_example_value_fn=losses, batch=batch
  ... )
  >>> float(u)  # of (w + 3)^2 at 0.5
  7.0
  """
  selections.check_size('ascent', ascent)
  return sharpness_aware(
    perturbations.scale_to_radius(rho),
    selection=selections.top_k(ascent, descent),
    mask=mask,
    axis_name=axis_name,
    sync_ascent=sync_ascent,
  )


def esam(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  beta: float = 0.6,
  gamma: float = 0.5,
  key: jax.Array | int,
  mask: masking.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Efficient SAM (ESAM): perturbs some leaves, descends on some examples.

  With `g` the gradient at `w` and `l_i` the losses of the batch::

    gA      = g with each leaf kept with probability beta, else zeroed
    epsilon = (rho / beta) * gA / (norm(gA) + 1e-12)
    d_i     = l_i(w + epsilon) - l_i(w)
    u       = gradient of the mean of l_i at w + epsilon over the examples
              with the largest d_i, for all leaves

  No leaf kept gives `epsilon = 0`. Mind that the radius is `rho / beta`. The
  authors' program keeps the examples strictly above the k-th largest rise, so
  one fewer, and none at all if all are equal; it keeps all leaves at the first
  step. Neither is reproduced. Ports disagree on whether `beta` is kept or
  dropped, and on the factor; the printed one could not be confirmed. XLA
  saves nothing by dropping leaves, and there is one more forward pass.

  Args:
    rho: radius, at least 0, or a schedule of it.
    beta: share of the leaves that is perturbed, in (0, 1]; the authors use 0.6
      for ResNet-18, 0.5 for WRN-28-10.
    gamma: size of the set for the descent gradient: a fraction of the batch in
      (0, 1] if a float, a number of examples if an int.
    key: integer seed or typed key, the same on all devices.
    mask: which leaves may be perturbed; see `optax_sam.sharpness_aware`.
    axis_name: axis of `jax.pmap` or `jax.shard_map` to average over; each
      device ranks its own examples.
    sync_ascent: whether the ascent gradient is averaged over that axis too.

  Returns:
    A gradient transformation, to be placed first in `optax.chain`; its
    `update` needs `per_example_value_fn` and `batch`. Both passes must see
    the same randomness, or the rise is noise. Cost in gradients:
    (4 + 3 * gamma) / 3, gamma as a fraction.

  Raises:
    ValueError: if a Python value is out of range.

  References:
    Du, Yan, Feng, Zhou, Zhen, Goh, Tan, `Efficient Sharpness-Aware
    Minimization for Improved Training of Neural Networks
    <https://arxiv.org/abs/2110.03141>`_, ICLR 2022.

  >>> import jax, jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.esam(rho=0.5, beta=1.0, gamma=1, key=0)
  >>> losses = lambda w, batch: jnp.square(w - batch)
  >>> w, batch = jnp.float32(0.0), jnp.array([1.0, -3.0, 2.0])
  >>> u, _ = tx.update(
  ...   w + 1, tx.init(w), w, per_example_value_fn=losses, batch=batch
  ... )
  >>> float(u)  # of (w + 3)^2 at 0.5
  7.0
  """
  validation.check_number('beta', beta, above=0, at_most=1)
  selections.check_size('gamma', gamma)
  return sharpness_aware(
    optax.chain(
      perturbations.keep_random_tensors(beta, key),
      perturbations.scale_to_radius(_divided(rho, beta)),
    ),
    selection=selections.sharpest(gamma),
    mask=mask,
    axis_name=axis_name,
    sync_ascent=sync_ascent,
  )


def ordered_sgd(
  *,
  k: float,
  axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
  """Ordered SGD: descends on the examples with the largest losses.

  With `l_i(w)` the losses of the batch and `Q` the `k` examples with the
  largest ones; there is no perturbation::

    u = gradient of the mean of l_i over Q at w

  The authors start with the whole batch and take 1/2, 1/4, 1/8, 1/16 of it
  once the training accuracy reaches 80, 90, 95, 99.5 %, never more again; k
  shapes the program, so build a new transformation for each. Their program
  ranks inside of a full forward pass, where batch norm sees the whole batch;
  this one gathers first, which is the same unless examples interact.

  Args:
    k: size of Q: a number of examples if an int, a fraction of the batch in
      (0, 1] if a float; 1.0 is the base optimizer.
    axis_name: axis of `jax.pmap` or `jax.shard_map` to average over; each
      device ranks its own examples.

  Returns:
    A gradient transformation, to be placed first in `optax.chain`; its
    `update` needs `per_example_value_fn` and `batch`. Cost in gradients:
    (1 + 3 * k) / 3, k as a fraction.

  Raises:
    ValueError: if a Python value is out of range.

  References:
    Kawaguchi, Lu, `Ordered SGD: A New Stochastic Optimization Framework for
    Empirical Risk Minimization <https://arxiv.org/abs/1907.04371>`_, AISTATS
    2020.

  >>> import jax, jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.ordered_sgd(k=1)
  >>> losses = lambda w, batch: jnp.square(w - batch)
  >>> w, batch = jnp.float32(0.0), jnp.array([1.0, -3.0, 2.0])
  >>> u, _ = tx.update(
  ...   w, tx.init(w), w, per_example_value_fn=losses, batch=batch
  ... )
  >>> float(u)
  6.0
  """
  selections.check_size('k', k)
  return sharpness_aware(
    optax.set_to_zero(),
    selection=selections.top_k(None, k),
    axis_name=axis_name,
  )


def _divided(
  rho: optax.ScalarOrSchedule, divisor: Any
) -> optax.ScalarOrSchedule:
  validation.check_radius(rho)
  return (lambda t: rho(t) / divisor) if callable(rho) else rho / divisor
