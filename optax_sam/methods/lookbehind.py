"""Lookbehind-SAM: several ascent and descent steps, then a fraction of them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine import devices, manual_axes, partition
from optax_sam.engine.gradient import of_present
from optax_sam.engine.info import advance, first_state
from optax_sam.engine.loss_view import LossView
from optax_sam.engine.transformation import accept, checked
from optax_sam.trees import tree_math


class LookbehindState(NamedTuple):
  """State of `lookbehind`: `ascent` counts steps, `base` is the optimizer's."""

  ascent: Any
  base: optax.OptState


@validation.method('steps')
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
  r"""Lookbehind-SAM: several ascent and descent steps, then a part of the way.

  Starting from :math:`p = f = w` and the gradient :math:`h` at :math:`w`, the
  rows below are repeated `steps` times; then the update is :math:`\alpha (f -
  w)`. The base optimizer takes `steps` steps for each batch. So this method
  wraps it, and its schedules must be `steps` times as long. `steps=1, alpha=1`
  is SAM.

  .. math::
    p &\leftarrow p + \rho\, h / (\|h\| + 10^{-12}) \text{ (not projected)} \\
    h &\leftarrow \nabla L(p) \\
    f &\leftarrow f + \text{base update of } h \text{ at } f

  Args:
    base: base optimizer, with everything that belongs to it in a chain.
    rho: length of each ascent step, at least 0, or a schedule of it by the
      step. 0.05 is from the authors' example; their class has 0.5, for ASAM.
    steps: number of ascent steps, at least 1; 2 in the authors' example, 5 in
      their class.
    alpha: fraction of the way taken, in [0, 1]; the authors use 0.2 to 0.8.
    mask, axis_name, sync_ascent: see `optax_sam.sharpness_aware`.

  Returns:
    An optimizer that includes the learning rate, whose `update` needs `params`,
    and `value_fn` or `grad_fn`. A step costs 1 + `steps` gradients.

  .. note:: Checked against the authors' code, which adds 1e-16 to norms.

  References:
    Mordido, Malviya, Baratin, Chandar, `Lookbehind-SAM: k steps back, 1 step
    forward <https://arxiv.org/abs/2307.16704>`_, ICML 2024.

  >>> import jax.numpy as jnp, optax, optax_sam
  >>> tx = optax_sam.lookbehind(optax.sgd(0.1), rho=0.5, steps=2, alpha=0.5)
  >>> w, grad_fn = jnp.array([3.0, 4.0]), lambda w: 2 * w
  >>> updates, _ = tx.update(2 * w, tx.init(w), w, grad_fn=grad_fn)
  >>> [round(x, 3) for x in updates.tolist()]  # of 1.1 * w and 1.2 * w
  [-0.69, -0.92]
  """
  validation.check_radius(rho)
  validation.check_static_integer('steps', steps)
  validation.check_number('alpha', alpha, at_least=0, at_most=1)
  validation.check_sync_ascent(sync_ascent, axis_name)
  validation.check_base(base)
  base = of_present(base)

  def init(params: optax.Params) -> LookbehindState:
    ascent = first_state(partition.Leaves.of(params, mask).split(params))
    return LookbehindState(ascent, base.init(params))

  def update(updates: Any, state: Any, params: Any, **extra: Any) -> Any:
    view = LossView.open(params, updates, extra, mask=mask, axis_name=axis_name)
    leaves, before = view.leaves, state.ascent
    w, clean = leaves.split(params), leaves.split(updates)
    manual_axes.check(view, clean, axis_name)
    updates = devices.average_numbers(updates, axis_name)
    radius = validation.at_step(rho, before.step_count)
    ascent = devices.average(clean, axis_name) if sync_ascent else clean
    norm = tree_math.norm(leaves.inside(ascent))
    loss = before.info.perturbed_loss
    # Half precision would round the sums of the steps away.
    ascended = tree_math.zeros_like(leaves.inside(w))
    gone, moved, base_state = tree_math.zeros_like(w), updates, state.base
    finite = jnp.ones((), bool)
    for step in range(steps):
      wide = tree_math.widen_like(leaves.inside(ascent), ascended)
      ascended = tree_math.add(ascended, tree_math.scale_to(radius, wide))
      value, local = view.value_and_grad(leaves.move(w, ascended))
      local = optax.tree.cast_like(local, clean)
      if step == steps - 1:
        loss = loss if value is None else jnp.asarray(value, loss.dtype)
        # One collective for the gradient and the metrics of the step.
        gradient, norm, loss = devices.average((local, norm, loss), axis_name)
      else:
        gradient = devices.average(local, axis_name)
      ascent = gradient if sync_ascent else local
      # The base optimizer may hide a NaN, by a sign or by clipping.
      finite &= tree_math.all_finite(gradient)
      fast = leaves.join(tree_math.move(w, gone), params)
      gradient = leaves.join(gradient, updates)
      moved, base_state = base.update(gradient, base_state, fast, **extra)
      gone = tree_math.move(gone, leaves.split(moved))
    part = jax.tree.map(lambda x: jnp.asarray(alpha, x.dtype) * x, gone)
    part = optax.tree.cast_like(part, leaves.split(moved))
    valid = finite & jnp.isfinite(norm)
    after = LookbehindState(advance(before, norm, loss), base_state)
    after = accept(part, after, state, valid)
    return leaves.join(tree_math.nan_unless(valid, part), moved), after

  return checked(init, update, LookbehindState, mask=mask)
