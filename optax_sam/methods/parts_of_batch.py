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
    rho: radius in the unit of the parameters, a scalar of at least 0, or a
      schedule of it by the step. 0.05 is SAM's. The authors are quoted with
      0.02 to 0.3: 0.05 for T5 small, 0.15 for larger ones.
    fraction: size of A: a fraction of the batch in (0, 1] if a float, a number
      of examples if an int of at least 1. The authors report a quarter to be
      about 25 % slower than plain descent.
    key: integer seed or typed key to draw A with, without replacement, the
      same on all devices; None takes the first rows.
    mask: leaves that may be perturbed; see `optax_sam.sharpness_aware`.
    axis_name: device axis to average over; see `optax_sam.sharpness_aware`.
    sync_ascent: whether the ascent gradient is averaged too; see there.
      Each device takes A from its own examples.

  Returns:
    A gradient transformation, to be placed first in `optax.chain`; its
    `update` needs `per_example_value_fn` and `batch`. With batch norm A is
    normalized by itself. Cost: 1 + `fraction` gradients, and a forward pass if
    the clean loss is used besides. Keeps the key, if there is one.

  Raises:
    ValueError: if a Python value is out of range, and in `update` if what it
      needs was not passed.

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
  >>> float(u)  # the mean over the batch at -0.5, away from its first example
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

  This is what `sam` does on devices that hold a part each. The parts run one
  after the other, so memory is that of one.

  Args:
    rho: radius in the unit of the parameters, a scalar of at least 0, or a
      schedule of it by the step. 0.05 is SAM's.
    micro_batch_size: number of examples of a part, at least 1; the authors use
      32 to 128.
    mask: leaves that may be perturbed; see `optax_sam.sharpness_aware`.
    axis_name: device axis to average over; see `optax_sam.sharpness_aware`.
    sync_ascent: whether the ascent gradient is averaged too; see there.
      Each device splits its own examples.

  Returns:
    A gradient transformation, to be placed first in `optax.chain`; its
    `update` needs `per_example_value_fn` and `batch`. With batch norm each
    part is normalized by itself. Cost: 2 gradients, and a forward pass if the
    clean loss is used besides. Keeps nothing.

  Raises:
    ValueError: if a Python value is out of range, and in `update` if what it
      needs was not passed.

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
