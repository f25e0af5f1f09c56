"""Methods that take a gradient over some of the examples only."""

from typing import Any

import jax
import optax

from optax_sam import masking, perturbations, selections
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
  return sharpness_aware(
    perturbations.scale_to_radius(rho),
    selection=selections.top_k(ascent, descent),
    mask=mask,
    axis_name=axis_name,
    sync_ascent=sync_ascent,
  )


def subset_sam(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  fraction: float = 0.25,
  key: jax.Array | int | None = None,
  mask: masking.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """SAM with the ascent gradient over a part of the batch.

  With `A` the part, and the descent gradient over the whole batch::

    gA      = gradient of the mean loss over A at w
    epsilon = rho * gA / (norm(gA) + 1e-12)
    u       = gradient at w + epsilon

  Whether the paper takes the first rows or a permutation could not be
  confirmed; give a key where batches are sorted or packed.

  Args:
    rho: radius, at least 0, or a schedule of it; the authors use 0.02 to 0.3.
    fraction: size of A: a fraction of the batch in (0, 1] if a float, a number
      of examples if an int. A quarter is the paper's, "about 25 % slower".
    key: integer seed or typed key to draw A with; None takes the first rows.
    mask: which leaves may be perturbed; see `optax_sam.sharpness_aware`.
    axis_name: axis of `jax.pmap` or `jax.shard_map` to average over; each
      device takes a part of its own examples.
    sync_ascent: whether the ascent gradient is averaged over that axis too.

  Returns:
    A gradient transformation, to be placed first in `optax.chain`; its
    `update` needs `per_example_value_fn` and `batch`. Cost: 1 + `fraction`
    gradients, and a forward pass if the clean loss is used besides.

  Raises:
    ValueError: if a Python value is out of range.

  References:
    Bahri, Mobahi, Tay, `Sharpness-Aware Minimization Improves Language Model
    Generalization <https://arxiv.org/abs/2110.08529>`_, ACL 2022.

  >>> import jax, jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.subset_sam(rho=0.5, fraction=1)
  >>> losses = lambda w, batch: jnp.square(w - batch)
  >>> w, batch = jnp.float32(0.0), jnp.array([1.0, -3.0, 2.0])
  >>> u, _ = tx.update(
  ...   w, tx.init(w), w, per_example_value_fn=losses, batch=batch
  ... )
  >>> float(u)  # the mean over the batch at -0.5
  -1.0
  """
  return sharpness_aware(
    perturbations.scale_to_radius(rho),
    selection=selections.random_subset(fraction, key),
    mask=mask,
    axis_name=axis_name,
    sync_ascent=sync_ascent,
  )
