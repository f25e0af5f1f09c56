"""Several ascents and as many descents a step, and part of the way back."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine import ascents, devices, partition
from optax_sam.trees import tree_math


class LookbehindState(NamedTuple):
  """State of `lookbehind`.

  Attributes:
    ascent: `SharpnessAwareState` that counts the ascents.
    base: state of the base optimizer.
  """

  ascent: Any
  base: optax.OptState


def lookbehind(
  base: optax.GradientTransformation,
  *,
  rho: optax.ScalarOrSchedule = 0.05,
  steps: int = 2,
  alpha: float = 0.5,
  mask: partition.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Lookbehind-SAM: several ascents, as many descents, part of the way.

  From `fast = pert = w` and `h` the gradient at `w`, `steps` times::

    pert = pert + rho * h / (norm(h) + 1e-12)     # further on, not projected
    h    = gradient at pert
    fast = fast + base.update(h) at fast          # one state of the base
    then: update = alpha * (fast - w)

  One gradient serves a descent and the ascent after it. The base optimizer
  takes `steps` steps a batch, so it is wrapped, and its schedules are to be
  `steps` times as long. The rule was checked against the authors' program,
  which adds 1e-16 to the norm. With `steps=1` and `alpha=1` it is SAM.

  Args:
    base: base optimizer, with everything that belongs to it in a chain.
    rho: length of each ascent in the unit of the parameters, a scalar of at
      least 0, or a schedule of it by the step; the default is that of an
      example of the authors, whose class has 0.5, for ASAM.
    steps: number of ascents, a Python int of at least 1; the authors' example
      has 2, their class 5.
    alpha: share of the way that is gone, in [0, 1]; the authors go 0.2 to 0.8.
    mask: leaves that may be perturbed; see `optax_sam.sharpness_aware`.
    axis_name: device axis to average over; see `optax_sam.sharpness_aware`.
    sync_ascent: whether the ascent gradient is averaged too; see there.

  Returns:
    An optimizer whose `update` needs `params`, and `value_fn` or `grad_fn`,
    and returns the whole update: no learning rate follows. Cost: 1 + `steps`
    gradients. Keeps the state of the base (`LookbehindState`).

  Raises:
    ValueError: if a Python value is out of range, and in `update` if what it
      needs was not passed.

  References:
    Mordido, Malviya, Baratin, Chandar, `Lookbehind-SAM: k steps back, 1 step
    forward <https://arxiv.org/abs/2307.16704>`_, ICML 2024.

  >>> import jax, jax.numpy as jnp, optax, optax_sam
  >>> tx = optax_sam.lookbehind(optax.sgd(0.1), rho=0.5, steps=2, alpha=0.5)
  >>> loss = lambda w: jnp.sum(w**2)
  >>> w = jnp.array([3.0, 4.0])
  >>> updates, _ = tx.update(jax.grad(loss)(w), tx.init(w), w, value_fn=loss)
  >>> [round(x, 3) for x in updates.tolist()]  # of 1.1 * w and 1.2 * w
  [-0.69, -0.92]
  """
  validation.check_radius(rho)
  validation.check_static_integer('steps', steps)
  validation.check_number('alpha', alpha, at_least=0, at_most=1)
  validation.check_sync_ascent(sync_ascent, axis_name)
  validation.check_base(base)
  base = optax.with_extra_args_support(base)

  def init(params: optax.Params) -> LookbehindState:
    return LookbehindState(ascents.init(params, mask), base.init(params))

  def update(
    updates: Any, state: Any, params: Any = None, **extra_args: Any
  ) -> tuple[Any, LookbehindState]:
    objective = ascents.objective_of(params, extra_args, axis_name)
    floats = objective.floats
    center = partition.keep(floats, params)
    allowed = partition.chosen_leaves(mask, center)
    inside = partition.keep(allowed, center)
    count = state.ascent.count
    radius = rho(count) if callable(rho) else rho

    clean = partition.keep(floats, updates)
    devices.check_local(clean, axis_name)
    local = devices.average(clean, axis_name) if sync_ascent else clean
    size = tree_math.norm(partition.keep(allowed, local))
    # Half precision would round the sums of the steps away.
    ascended, gone = tree_math.zeros_like(inside), tree_math.zeros_like(center)
    base_state, moved = state.base, updates
    loss = state.ascent.info.perturbed_loss
    for step in range(steps):
      ascended = _ascend(radius, partition.keep(allowed, local), ascended)
      point = partition.fill(allowed, tree_math.add(inside, ascended), center)
      value, local = objective.value_and_grad(point)
      local = tree_math.cast_like(local, clean)
      if step == steps - 1:
        loss = ascents.known_loss(value, state.ascent)
        # One collective for the gradient and what is told of it.
        gradient, size, loss = devices.average((local, size, loss), axis_name)
      else:
        gradient = devices.average(local, axis_name)
      local = gradient if sync_ascent else local
      fast = partition.fill(floats, tree_math.add(center, gone), params)
      moved, base_state = base.update(
        partition.fill(floats, gradient, updates),
        base_state,
        fast,
        **extra_args,
      )
      gone = _go(gone, partition.keep(floats, moved))
    way = _shorten(alpha, gone, partition.keep(floats, moved))
    ascent = ascents.advance(state.ascent, size, loss)
    return partition.fill(floats, way, moved), LookbehindState(
      ascent, base_state
    )

  return optax.GradientTransformationExtraArgs(init, update)


@jax.jit
def _ascend(
  radius: Any, gradient: optax.Updates, ascended: optax.Updates
) -> optax.Updates:
  wide = tree_math.widen_like(gradient, ascended)
  return tree_math.add(ascended, tree_math.scale_to(radius, wide))


@jax.jit
def _go(gone: optax.Updates, moved: optax.Updates) -> optax.Updates:
  return jax.tree.map(lambda x, y: x + y.astype(x.dtype), gone, moved)


@jax.jit
def _shorten(
  alpha: Any, gone: optax.Updates, like: optax.Updates
) -> optax.Updates:
  return jax.tree.map(
    lambda x, y: (jnp.asarray(alpha, x.dtype) * x).astype(y.dtype), gone, like
  )
