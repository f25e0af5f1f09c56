"""Two gradients of a step that don't wait for each other."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine import ascents, devices, partition
from optax_sam.trees import tree_math


class SampaState(NamedTuple):
  """State of `sampa`.

  Attributes:
    ascent: `SharpnessAwareState` that counts the steps.
    base: state of the base optimizer.
    gradient: the last gradient ahead, like the parameters, float32 or wider.
    batch: the batch of the last step.
  """

  ascent: Any
  base: optax.OptState
  gradient: optax.Updates
  batch: Any


def sampa(
  base: optax.GradientTransformation,
  *,
  rho: optax.ScalarOrSchedule = 0.1,
  mix: float = 0.2,
  batch_like: Any,
  mask: partition.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """SAMPa: perturbs by the gradient ahead, on the batch of the step before.

  With `gy` the gradient ahead of the step before, 0 before the first::

    xt = w + rho * gy / (norm(gy) + 1e-12)
    y  = w + base.update(gy) at w           # its new state is dropped
    g1 = gradient at xt on the last batch
    g2 = gradient at y on this batch
    gy = g2
    update = base.update((1 - mix) * g1 + mix * g2) at w

  At the first step `xt` and `y` are `w`, and both batches are this one. `g1`
  and `g2` don't depend on each other, so that two devices, or one that isn't
  full, can compute them at once; the gradient that comes in isn't used. The
  rule was followed through the released program by hand, which wasn't run: it
  keeps `g1` and `g2` mixed and divides `gy` out of them, where here `gy` is
  kept. A `g2` that isn't finite leaves `gy` as it was. Dropout: put keys of
  examples into `batch`, or the last batch sees the masks of this one.

  Args:
    base: base optimizer, with everything that belongs to it in a chain.
    rho: radius in the unit of the parameters, a scalar of at least 0, or a
      schedule of it by the step; 0.1 is the authors' default.
    mix: weight of the gradient ahead, in [0, 1]; 0.2 is the authors' default.
    batch_like: a batch, or the shapes and dtypes of one: arrays or
      `jax.ShapeDtypeStruct`, with the examples on axis 0, the same number at
      every step.
    mask: leaves that may be perturbed; see `optax_sam.sharpness_aware`.
    axis_name: device axis to average over; see `optax_sam.sharpness_aware`.
      What comes in `batch` is of one device, and so is the `batch` of the
      state, which is to be split like any other.
    sync_ascent: whether the ascent gradient is averaged too; see there.
      `gy` is the same on all devices: it makes no difference.

  Returns:
    An optimizer whose `update` needs `params`, and needs
    `per_example_value_fn` and `batch`, and returns the whole update: no
    learning rate follows. Cost: 2 gradients, side by side. Keeps the state of
    the base, one gradient and one batch (`SampaState`).

  Raises:
    ValueError: if a Python value is out of range, and in `update` if what it
      needs was not passed, or a batch is of another shape.

  References:
    Xie, Pethick, Cevher, `SAMPa: Sharpness-aware Minimization Parallelized
    <https://arxiv.org/abs/2410.10683>`_, NeurIPS 2024.

  >>> import jax.numpy as jnp, optax, optax_sam
  >>> batch = jnp.array([1.0, 2.0])
  >>> tx = optax_sam.sampa(optax.sgd(0.1), rho=0.5, mix=0.5, batch_like=batch)
  >>> losses = lambda w, batch: 0.5 * (w - batch) ** 2
  >>> w, state = jnp.float32(4.0), tx.init(jnp.float32(4.0))
  >>> for shift in (0.0, 1.0):
  ...   updates, state = tx.update(
  ...     w, state, w, per_example_value_fn=losses, batch=batch + shift
  ...   )
  ...   w = w + updates  # by 2.5, then by the mean of 2.75 and 1
  ...   print(round(float(w), 4))
  3.75
  3.5625
  """
  validation.check_radius(rho)
  validation.check_number('mix', mix, at_least=0, at_most=1)
  validation.check_sync_ascent(sync_ascent, axis_name)
  validation.check_base(base)
  base = optax.with_extra_args_support(base)

  def init(params: optax.Params) -> SampaState:
    floats = partition.keep(partition.float_leaves(params), params)
    return SampaState(
      ascents.init(params, mask),
      base.init(params),
      tree_math.zeros_like(floats),
      jax.tree.map(_empty, batch_like),
    )

  def update(
    updates: Any, state: Any, params: Any = None, **extra_args: Any
  ) -> tuple[Any, SampaState]:
    objective = ascents.objective_of(params, extra_args, axis_name)
    _ = objective.num_examples  # says what is missing, if anything
    floats, batch = objective.floats, objective.batch
    batch = jax.tree.map(_owned, batch)
    _check_batch(batch, state.batch)
    center = partition.keep(floats, params)
    allowed = partition.chosen_leaves(mask, center)
    inside = partition.keep(allowed, center)
    count = state.ascent.count
    radius = rho(count) if callable(rho) else rho
    is_first = count == 0

    ahead = state.gradient
    ascent = partition.keep(allowed, ahead)
    behind = partition.fill(
      allowed, tree_math.add(inside, tree_math.scale_to(radius, ascent)), center
    )
    like = partition.keep(floats, updates)
    guess, _ = base.update(
      partition.fill(floats, tree_math.cast_like(ahead, like), updates),
      state.base,
      params,
      **extra_args,
    )
    # Momentum and weight decay move at a gradient of zero, too.
    there = optax.apply_updates(center, partition.keep(floats, guess))
    there = tree_math.select(is_first, center, there)
    last = jax.tree.map(
      lambda new, old: jnp.where(is_first, new, old), batch, state.batch
    )
    loss, first = objective.on(last).value_and_grad(behind)
    _, second = objective.on(batch).value_and_grad(there)
    mixed = _mix(mix, first, second)
    second = tree_math.widen_like(second, ahead)
    loss = jnp.asarray(loss)
    mixed, second, loss = devices.average((mixed, second, loss), axis_name)
    mixed = tree_math.cast_like(mixed, like)
    step, base_state = base.update(
      partition.fill(floats, mixed, updates), state.base, params, **extra_args
    )
    is_finite = jnp.isfinite(tree_math.norm(second))
    return step, SampaState(
      ascents.advance(state.ascent, tree_math.norm(ascent), loss),
      base_state,
      tree_math.select(is_finite, second, ahead),
      batch,
    )

  return optax.GradientTransformationExtraArgs(init, update)


def _owned(leaf: Any) -> jax.Array:
  # A copy: the state may be donated, the batch is the caller's.
  leaf = jnp.copy(leaf)
  if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    return leaf
  return jnp.asarray(leaf, leaf.dtype)  # not weakly typed


def _empty(leaf: Any) -> jax.Array:
  if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    return jnp.broadcast_to(jax.random.key(0), leaf.shape)
  return jnp.zeros(leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype))


def _check_batch(batch: Any, kept: Any) -> None:
  shapes = lambda tree: jax.tree.map(lambda x: (x.shape, str(x.dtype)), tree)
  if shapes(batch) != shapes(kept):
    msg = (
      f'batch must be like batch_like={shapes(kept)}, got {shapes(batch)}: '
      f'pass batch_like=batch, and batches of one size.'
    )
    raise ValueError(msg)


@jax.jit
def _mix(weight: Any, one: optax.Updates, other: optax.Updates) -> Any:
  def leaf(x: jax.Array, y: jax.Array) -> jax.Array:
    wide, dtype = tree_math.widen(x), tree_math.wide_dtype(x)
    share = jnp.asarray(weight, dtype)
    return (1 - share) * wide + share * y.astype(dtype)

  return jax.tree.map(leaf, one, other)
