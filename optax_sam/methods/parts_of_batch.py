"""Methods that ascend on one part of the batch at a time."""

from typing import Any

import jax
import optax

from optax_sam import masking, perturbations, selections, validation
from optax_sam.sharpness_aware import sharpness_aware


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


def m_sam(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  micro_batch_size: int,
  mask: masking.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """SAM on micro-batches (m-SAM), independent of the number of devices.

  The batch is split, in order, into parts of `micro_batch_size` examples, the
  last one smaller if there is a remainder. With `g_k` the gradient of part k
  at `w`, and means weighted by the number of examples::

    epsilon_k = rho * g_k / (norm(g_k) + 1e-12)
    u         = mean over k of the gradient of part k at w + epsilon_k

  The parts run one after the other, so memory is that of one.

  Args:
    rho: radius, at least 0, or a schedule of it.
    micro_batch_size: number of examples of a part, at least 1; Foret et al.
      use 32 to 128.
    mask: which leaves may be perturbed; see `optax_sam.sharpness_aware`.
    axis_name: axis of `jax.pmap` or `jax.shard_map` to average over; each
      device splits its own part of the batch.
    sync_ascent: whether every g_k is averaged over that axis too.

  Returns:
    A gradient transformation, to be placed first in `optax.chain`; its
    `update` needs `per_example_value_fn` and `batch`. Cost: 2 gradients, and a
    forward pass if the clean loss is used besides.

  Raises:
    ValueError: if a Python value is out of range.

  References:
    Foret, Kleiner, Mobahi, Neyshabur, `Sharpness-Aware Minimization for
    Efficiently Improving Generalization <https://arxiv.org/abs/2010.01412>`_,
    ICLR 2021.

  >>> import jax, jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.m_sam(rho=0.5, micro_batch_size=1)
  >>> losses = lambda w, batch: jnp.square(w - batch)
  >>> w, batch = jnp.float32(0.0), jnp.array([1.0, -3.0])
  >>> u, _ = tx.update(
  ...   w, tx.init(w), w, per_example_value_fn=losses, batch=batch
  ... )
  >>> float(u)  # the mean of -3 at -0.5 and of 7 at 0.5
  2.0
  """
  validation.check_static_integer('micro_batch_size', micro_batch_size)
  return sharpness_aware(
    perturbations.scale_to_radius(rho),
    selection=selections.micro_batches(micro_batch_size),
    mask=mask,
    axis_name=axis_name,
    sync_ascent=sync_ascent,
  )
