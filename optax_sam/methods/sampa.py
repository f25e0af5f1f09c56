"""SAMPa: two gradients of a step that do not depend on each other."""

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
from optax_sam.trees import array_types, tree_math


class SampaState(NamedTuple):
  """State of `sampa`; `gradient` is the predicted one, float32 or wider."""

  ascent: Any
  base: optax.OptState
  gradient: optax.Updates
  batch: Any


@validation.method('batch_like')
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
  r"""SAMPa: perturbs along a gradient at a predicted point, on the last batch.

  The two gradients of a step do not depend on each other, so they can be
  computed in parallel, on two devices or on one with free capacity.

  .. math::
    \tilde g &= \nabla L_{t-1}(w + \rho\, h / (\|h\| + 10^{-12})) \\
    h &\leftarrow \nabla L_t(w + \text{base}(h)) \\
    u &= \text{base}((1 - \lambda)\, \tilde g + \lambda h)

  :math:`L_t` is the loss of the batch of step t, and base the update of the
  base optimizer at :math:`w`, whose state after :math:`\text{base}(h)` is
  dropped. At the first step both gradients are at :math:`w`, on this batch.

  Args:
    base: base optimizer, chained with its weight decay, clipping and so on.
    rho: radius, at least 0, or a schedule of it by the step. 0.1: the authors'.
    mix: :math:`\lambda`, in [0, 1]. 0.2 is the authors'.
    batch_like: a batch, or its shapes and dtypes (`jax.ShapeDtypeStruct`), with
      the same number of examples, along axis 0, at every step.
    mask, axis_name, sync_ascent: see `optax_sam.sharpness_aware`. `batch` and
      its copy in the state are local: split them over the devices. `h` is the
      same on all devices, so `sync_ascent` makes no difference.

  Returns:
    An optimizer that includes the learning rate, whose `update` needs `params`,
    `per_example_value_fn` and `batch`; state: a gradient and a batch. It costs
    2 gradients; the incoming one is unused.

  .. note:: With dropout, put the keys into `batch`; otherwise the last batch
    gets the masks of this one. The rule was derived from the authors' code,
    which was not run: it stores the mixed gradients and computes :math:`h` from
    them.

  References:
    Xie, Pethick, Cevher, `SAMPa: Sharpness-aware Minimization Parallelized
    <https://arxiv.org/abs/2410.10683>`_, NeurIPS 2024.

  >>> import jax.numpy as jnp, optax, optax_sam
  >>> batch = jnp.array([1.0, 2.0])
  >>> tx = optax_sam.sampa(optax.sgd(0.1), rho=0.5, mix=0.5, batch_like=batch)
  >>> f = lambda w, x: 0.5 * (w - x) ** 2
  >>> w, state = jnp.float32(4.0), tx.init(jnp.float32(4.0))
  >>> for x in (batch, batch + 1):
  ...   u, state = tx.update(w, state, w, per_example_value_fn=f, batch=x)
  ...   w = w + u  # by 2.5, then by the mean of 2.75 and 1
  ...   print(round(float(w), 4))
  3.75
  3.5625
  """
  validation.check_radius(rho)
  validation.check_number('mix', mix, at_least=0, at_most=1)
  validation.check_sync_ascent(sync_ascent, axis_name)
  validation.check_base(base)
  leaves = jax.tree.leaves(batch_like)
  if not leaves or not all(getattr(x, 'shape', ()) for x in leaves):
    msg = (
      f'batch_like must hold arrays with the examples on axis 0, or their '
      f'shapes, got {batch_like!r}: write batch_like=batch.'
    )
    raise ValueError(msg)
  base = of_present(base)

  def empty(leaf: Any) -> jax.Array:
    split = array_types.explicit(leaf)
    return jnp.zeros(leaf.shape, jnp.result_type(leaf), out_sharding=split)

  def init(params: optax.Params) -> SampaState:
    w = partition.Leaves.of(params, mask).split(params)
    gradient, batch = tree_math.zeros_like(w), jax.tree.map(empty, batch_like)
    return SampaState(first_state(w), base.init(params), gradient, batch)

  def take(leaf: Any, like: jax.Array) -> jax.Array:
    """Copies a leaf of the caller's batch, as a state may be donated."""
    leaf = jnp.array(leaf, jnp.result_type(leaf))  # not weakly typed
    # So that the type of the state is fixed.
    split = array_types.explicit(like)
    return leaf if split is None else jax.sharding.reshard(leaf, split)

  def mixed(first: jax.Array, second: jax.Array) -> jax.Array:
    wide = tree_math.widen(first)
    weight = jnp.asarray(mix, wide.dtype)
    return (1 - weight) * wide + weight * second.astype(wide.dtype)

  def update(updates: Any, state: Any, params: Any, **extra: Any) -> Any:
    view = LossView.open(params, updates, extra, mask=mask, axis_name=axis_name)
    leaves, _ = view.leaves, view.num_examples  # checks the arguments
    manual_axes.check(view, None, axis_name)
    updates = devices.average_numbers(updates, axis_name)
    given, wanted = (
      jax.tree.map(lambda x: (jnp.shape(x), str(jnp.result_type(x))), batch)
      for batch in (view.batch, state.batch)
    )
    if given != wanted:
      msg = (
        f'batch must be like batch_like={wanted}, got {given}: pass '
        f'batch_like=batch, and batches of one size.'
      )
      raise ValueError(msg)
    batch = jax.tree.map(take, view.batch, state.batch)
    w, like = leaves.split(params), leaves.split(updates)
    count, predicted = state.ascent.step_count, state.gradient
    radius = validation.at_step(rho, count)

    def base_update(gradient: optax.Updates) -> tuple[Any, optax.OptState]:
      whole = leaves.join(optax.tree.cast_like(gradient, like), updates)
      return base.update(whole, state.base, params, **extra)

    ascent = leaves.inside(predicted)
    perturbed = leaves.move(w, tree_math.scale_to(radius, ascent))
    there = optax.apply_updates(w, leaves.split(base_update(predicted)[0]))
    # At first h = 0, but momentum and weight decay still give updates.
    there, last = optax.tree.where(count == 0, (w, batch), (there, state.batch))
    loss, first = view.on(last).value_and_grad(perturbed)
    _, second = view.on(batch).value_and_grad(there)
    both = jax.tree.map(mixed, first, second)
    second = tree_math.widen_like(second, predicted)
    both, second, loss = devices.average((both, second, loss), axis_name)
    step, base_state = base_update(both)
    # The base optimizer may hide a NaN, by a sign or by clipping.
    valid, moved = tree_math.all_finite(both), leaves.split(step)
    ascent_state = advance(state.ascent, tree_math.norm(ascent), loss)
    after = SampaState(ascent_state, base_state, second, batch)
    after = accept(moved, after, state, valid)
    return leaves.join(tree_math.nan_unless(valid, moved), step), after

  return checked(init, update, SampaState, mask=mask)
