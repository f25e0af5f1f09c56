"""Momentum-SAM: perturbs along the momentum."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine import devices, partition
from optax_sam.engine.descent import Descent
from optax_sam.engine.perturbation import scale_to_radius
from optax_sam.engine.sharpness_aware import sharpness_aware
from optax_sam.trees import tree_math


class MomentumState(NamedTuple):
  """What `momentum_sam` keeps.

  Attributes:
    direction: decaying sum of the perturbed gradients, like the parameters,
      float32 or wider unless a dtype was given.
  """

  direction: optax.Updates


def momentum_sam(
  rho: optax.ScalarOrSchedule = 3.0,
  *,
  decay: float = 0.9,
  accumulator_dtype: Any = None,
  mask: partition.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Momentum-SAM (MSAM): looks ahead along the momentum, at the cost of SGD.

  With `v` starting at 0::

    epsilon = -rho * v / (norm(v) + 1e-12)      # forward along the update
    u       = gradient at w + epsilon
    v       = decay * v + u                     # u averaged over the devices

  The gradient that comes in isn't used, so that a jitted step computes one
  gradient. `v` is the momentum of a base optimizer with the same decay, up to
  its scale; the authors store perturbed weights instead, which gives the same
  numbers as long as no weight decay enters the momentum. With AdamW that was
  checked against their program; in their SGD the decay of the perturbed weights
  enters, here not. A gradient that isn't finite is not added to `v`.

  Args:
    rho: radius in the unit of the parameters, a scalar of at least 0, or a
      schedule of it by the step; much larger than SAM's. The authors find 2.2
      to 3 best on CIFAR, 0.3 for ResNet on ImageNet, the default of their
      class, and 10 for ViT, with 0 while the learning rate warms up.
    decay: weight of the past in `v`, in [0, 1): the momentum of SGD, or b1 of
      Adam.
    accumulator_dtype: dtype that `v` is kept in; None for float32 or wider,
      bfloat16 for half of that memory.
    mask: leaves that may be perturbed; see `optax_sam.sharpness_aware`.
    axis_name: device axis to average over; see `optax_sam.sharpness_aware`.
    sync_ascent: whether the ascent gradient is averaged too; see there.
      `v` is the same on all devices: it makes no difference.

  Returns:
    A gradient transformation, to be placed first in `optax.chain`; its
    `update` needs `value_fn` or `grad_fn`. Cost: 1 gradient, and 1 / 3 if you
    use the clean loss. Keeps `v`.

  Raises:
    ValueError: if a Python value is out of range, and in `update` if what it
      needs was not passed.

  References:
    Becker, Altrock, Risse, `Momentum-SAM: Sharpness Aware Minimization without
    Computational Overhead <https://arxiv.org/abs/2401.12033>`_, 2024.

  >>> import jax, jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.momentum_sam(rho=1.0)
  >>> loss = lambda w: jnp.sum(w**2)
  >>> w = jnp.array([3.0, 4.0])
  >>> state = tx.init(w)
  >>> for _ in range(2):
  ...   u, state = tx.update(w, state, w, value_fn=loss)
  ...   print([round(x, 3) for x in u.tolist()])  # 2 * w, 2 * (w - w / 5)
  [6.0, 8.0]
  [4.8, 6.4]
  """
  validation.check_number('decay', decay, at_least=0, below=1)
  validation.check_float_dtype('accumulator_dtype', accumulator_dtype)
  validation.check_sync_ascent(sync_ascent, axis_name)
  element = sharpness_aware(
    scale_to_radius(rho),
    descent=_add_up(decay, accumulator_dtype),
    mask=mask,
    axis_name=axis_name,
  )

  @jax.jit
  def backwards(direction: optax.Updates, params: Any) -> optax.Updates:
    wide = tree_math.widen_like(direction, params)
    return jax.tree.map(jnp.negative, wide)

  def update(
    updates: Any,
    state: Any,
    params: Any = None,
    *,
    ascend: bool | None = None,
    **extra_args: Any,
  ) -> tuple[Any, Any]:
    if params is None or ascend is False:
      return element.update(updates, state, params, ascend=ascend, **extra_args)
    # What it takes for the clean gradient is what it ascends along.
    floats = partition.float_leaves(params)
    ascent = backwards(state.descent.direction, partition.keep(floats, params))
    ascent = devices.as_local(ascent, axis_name)
    direction, state = element.update(
      partition.fill(floats, ascent, updates),
      state,
      params,
      ascend=ascend,
      **extra_args,
    )
    return tree_math.cast_like(direction, updates), state

  return optax.GradientTransformationExtraArgs(element.init, update)


def _add_up(decay: Any, accumulator_dtype: Any) -> Descent:
  """Descends with the perturbed gradient, and keeps their decaying sum."""

  def init(params: optax.Params) -> MomentumState:
    return MomentumState(tree_math.zeros_like(params, accumulator_dtype))

  @jax.jit
  def add(perturbed: optax.Updates, state: MomentumState) -> MomentumState:
    def leaf(v: jax.Array, gp: jax.Array) -> jax.Array:
      wide = v.astype(tree_math.wide_dtype(v, gp))
      total = jnp.asarray(decay, wide.dtype) * wide + gp.astype(wide.dtype)
      return total.astype(v.dtype)

    direction = jax.tree.map(leaf, state.direction, perturbed)
    finite = jnp.isfinite(tree_math.norm(perturbed))
    return tree_math.select(finite, MomentumState(direction), state)

  def on_ascent(
    clean: optax.Updates, perturbed: optax.Updates, state: MomentumState
  ) -> tuple[optax.Updates, MomentumState]:
    del clean
    return perturbed, add(perturbed, state)

  def on_skip(
    clean: optax.Updates, state: MomentumState
  ) -> tuple[optax.Updates, MomentumState]:
    return clean, state

  return Descent(init, on_ascent, on_skip)
