"""SSAM-D: sparse SAM with a mask that drops flat entries and grows others."""

import fractions
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_sam import validation
from optax_sam.engine import devices, partition
from optax_sam.engine.perturbation import on_refresh, scale_to_radius
from optax_sam.engine.sharpness_aware import sharpness_aware
from optax_sam.trees import array_types, sparse_masks, tree_math

_MOST_REFRESHES = 2**20  # that a table has an entry for


class DynamicState(NamedTuple):
  """State of `keep_dynamic`: `step_count`, `mask` of bools, PRNG `key`."""

  step_count: jax.Array
  mask: Any
  key: jax.Array


def keep_dynamic(
  sparsity: float = 0.5,
  *,
  drop_rate: float = 0.5,
  refresh_every: int,
  total_steps: int,
  key: jax.Array | int,
  drop: Literal['gradient', 'weight', 'random'] = 'gradient',
  growth: Literal['gradient', 'weight', 'random'] = 'random',
) -> optax.GradientTransformationExtraArgs:
  """Zeroes entries by dynamic sparse training, flat ones first: SSAM-D.

  The mask and the other arguments are those of `optax_sam.sparse_sam_dynamic`,
  with scores compared in float32. The mask is refreshed after its use. An
  update of zeros leaves it unchanged. Order: see `keep_top_fisher`.

  Args:
    drop: 'gradient' drops the smallest `abs(g)`, 'weight' the smallest
      `abs(w)` at the unperturbed parameters; or 'random'.
    growth: the same for what is grown, where the largest are.
  """
  sparse_masks.check_fraction('sparsity', sparsity, at_most=1)
  validation.check_number('drop_rate', drop_rate, above=0, at_most=1)
  validation.check_count('refresh_every', refresh_every)
  validation.check_count('total_steps', total_steps)
  validation.check_key(key)
  sources = ('gradient', 'weight', 'random')
  validation.check_choice('drop', drop, sources)
  validation.check_choice('growth', growth, sources)

  def init(params: optax.Params) -> DynamicState:
    typed = validation.as_key(key)
    active = sparse_masks.num_kept(sparsity, tree_math.size(params))
    mask = sparse_masks.largest(sparse_masks.random_bits(typed, params), active)
    mask = array_types.vary_like(mask, params)  # as a refreshed one does
    return DynamicState(jnp.zeros((), jnp.int32), mask, typed)

  def num_moved(step: jax.Array, active: int) -> jax.Array:
    static = (drop_rate, refresh_every, total_steps)
    is_static = all(map(validation.is_python_number, static))
    if not is_static or total_steps > _MOST_REFRESHES * refresh_every:
      return _nearly_moved(step, active, drop_rate, total_steps)
    every = int(refresh_every)
    steps = range(0, int(total_steps) + every, every)
    table = jnp.asarray(_moved(steps, active, drop_rate, total_steps))
    return table[jnp.minimum(step // every, len(table) - 1)]

  def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
    def ranks(source: str, draw: int, gradient: Any) -> Any:
      if source == 'random':
        step_key = jax.random.fold_in(state.key, state.step_count)
        draw_key = jax.random.fold_in(step_key, draw)
        return sparse_masks.random_bits(draw_key, updates)
      scores = gradient if source == 'gradient' else params
      return jax.tree.map(lambda x: sparse_masks.rank_bits(jnp.abs(x)), scores)

    def refresh() -> Any:
      gradient = devices.average_ascent(updates, **extra)
      size = tree_math.size(updates)
      active = sparse_masks.num_kept(sparsity, size)
      moved = num_moved(state.step_count, active)
      moved = jnp.minimum(moved, min(active, size - active))
      dropped, grown = ranks(drop, 0, gradient), ranks(growth, 1, gradient)
      mask = sparse_masks.drop_and_grow(state.mask, dropped, grown, moved)
      usable = tree_math.is_usable(tree_math.norm(gradient))
      return optax.tree.where(usable, mask, state.mask)

    mask = on_refresh(
      state.step_count, refresh_every, refresh, lambda: state.mask
    )
    kept = jax.tree.map(lambda m, g: jnp.where(m, g, 0), state.mask, updates)
    count = tree_math.increment(state.step_count)
    return kept, DynamicState(count, mask, state.key)

  return optax.GradientTransformationExtraArgs(init, update)


def _moved(
  steps: range, active: int, drop_rate: float, total_steps: int
) -> np.ndarray:
  """Returns `floor(active * r)` at some steps, exactly.

  On the host: float32 counts to 2**24 only. Whole results come from the cosines
  that are fractions, at thirds and halves, so those are computed as such; from
  the others float64 is far enough.
  """
  progress = np.minimum(np.asarray(steps, np.float64) / total_steps, 1)
  doubled = 2 * np.cos(np.pi * progress)
  share = fractions.Fraction(str(drop_rate)) * active / 4
  moved = np.floor(float(share) * (2 + doubled))
  for whole, sixths in ((2, 0), (1, 2), (0, 3), (-1, 4), (-2, 6)):
    at = np.minimum(np.asarray(steps) * 6, 6 * total_steps)
    moved[at == sixths * total_steps] = math.floor(share * (2 + whole))
  return moved.astype(np.int32)


def _nearly_moved(
  step: jax.Array, active: int, drop_rate: Any, total_steps: Any
) -> jax.Array:
  """Returns nearly the same, of traced settings or of very many refreshes."""
  number = lambda x: jnp.asarray(x, jnp.float32)
  progress = jnp.minimum(number(step) / number(total_steps), 1)
  rate = number(drop_rate) / 2 * (1 + jnp.cos(jnp.pi * progress))
  return jnp.floor(active * (rate + 4e-7)).astype(jnp.int32)


@validation.method('sparsity')
def sparse_sam_dynamic(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  sparsity: float = 0.5,
  drop_rate: float = 0.5,
  refresh_every: int,
  total_steps: int,
  key: jax.Array | int,
  mask: partition.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Sparse SAM by dynamic sparse training (SSAM-D): drops and grows its mask.

  With `g` the gradient at `w`, `t` the step from 0, `T = total_steps`, `N` the
  number of entries that may be perturbed, and `a = floor((1 - sparsity) * N)`
  of them in the mask, at first at random::

    epsilon = mask * rho * g / (norm(g) + 1e-12)
    u       = gradient at w + epsilon
    every refresh_every steps, t = 0 included, for the steps that follow:
      r = drop_rate / 2 * (1 + cos(pi * min(t / T, 1)))
      d = min(floor(a * r), N - a)    # exactly, unless settings are injected
      d entries of the mask with the smallest abs(g) are dropped,
      d that were outside before are grown, uniformly at random

  The norm is that of the full gradient, so `epsilon` is shorter than `rho`. All
  parameters are updated, and no time is saved. A gradient that is 0 or not
  finite leaves the mask unchanged.

  Exactly `a` entries are perturbed at every step. In the authors' program the
  count drifts by one and, as only growth is limited to what is left, falls
  below the target where `sparsity < r / (1 + r)`. `keep_dynamic` can also drop
  and grow by the size of the weights, which that program reads while they are
  perturbed. The defaults of `sparsity` and `drop_rate`, and to drop by the
  gradient and grow at random, are those of the authors' command line.
  Unverified: whether they are the paper's, and its `rho` per data set.

  Args:
    rho: radius, at least 0, or a schedule of it by the step; 0.05 is SAM's.
    sparsity: fraction of the entries that is not perturbed, in [0, 1]: 0 is
      SAM, 1 the base optimizer.
    drop_rate: fraction of the mask that the first refresh moves, in (0, 1].
    refresh_every: number of steps from one mask to the next, at least 1.
    total_steps: T, number of steps of the whole training, at least 1.
    key: integer seed or typed key, the same on all devices.
    mask, axis_name, sync_ascent: see `optax_sam.sharpness_aware`.
      Entries are dropped by the average in any case.

  Returns:
    A gradient transformation to place first in `optax.chain`; `update` needs
    `value_fn` or `grad_fn`. Cost: 2 gradients. State: a mask, the key.

  References:
    Mi et al., `Make Sharpness-Aware Minimization Stronger: A Sparsified
    Perturbation Approach <https://arxiv.org/abs/2210.05177>`_, NeurIPS 2022.

  >>> import jax.numpy as jnp, optax_sam
  >>> static = {'refresh_every': 1, 'total_steps': 10, 'key': 0}
  >>> tx, w = optax_sam.sparse_sam_dynamic(2.0, **static), jnp.zeros(4)
  >>> u, _ = tx.update(jnp.ones(4), tx.init(w), w, grad_fn=lambda w: w)
  >>> sorted(u.tolist())  # 2 of the 4, each of 2 / sqrt(4)
  [0.0, 0.0, 1.0, 1.0]
  """
  keep = keep_dynamic(
    sparsity,
    drop_rate=drop_rate,
    refresh_every=refresh_every,
    total_steps=total_steps,
    key=key,
  )
  perturbation = optax.chain(scale_to_radius(rho), keep)
  return sharpness_aware(
    perturbation, mask=mask, axis_name=axis_name, sync_ascent=sync_ascent
  )
