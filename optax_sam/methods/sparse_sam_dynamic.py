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
from optax_sam.engine.sharpness_aware import Choices, compose
from optax_sam.trees import array_types, sparse_masks, tree_math

_MOST_REFRESHES = 2**20  # largest size of a table


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
  """Zeroes entries by the mask of `optax_sam.sparse_sam_dynamic`.

  Scores are compared in float32. Order: see `keep_top_fisher`.

  Args:
    drop: 'gradient' drops the entries with the smallest `abs(g)`, 'weight'
      those with the smallest unperturbed `abs(w)`; or 'random'.
    growth: like `drop`, but grows the largest.
  """
  sparse_masks.check_fraction('sparsity', sparsity, at_most=1)
  validation.check_number('drop_rate', drop_rate, above=0, at_most=1)
  validation.check_count('refresh_every', refresh_every)
  validation.check_count('total_steps', total_steps)
  validation.check_key(key)
  for name, source in ('drop', drop), ('growth', growth):
    validation.check_choice(name, source, ('gradient', 'weight', 'random'))

  def init(params: optax.Params) -> DynamicState:
    typed = validation.as_key(key)
    active = sparse_masks.num_kept(sparsity, tree_math.size(params))
    mask = sparse_masks.largest(sparse_masks.random_bits(typed, params), active)
    mask = array_types.vary_like(mask, params)  # like a refreshed one
    return DynamicState(jnp.zeros((), jnp.int32), mask, typed)

  def num_moved(step: jax.Array, active: int) -> jax.Array:
    static = (drop_rate, refresh_every, total_steps)
    is_static = all(map(validation.is_python_number, static))
    if is_static and total_steps <= _MOST_REFRESHES * refresh_every:
      every = int(refresh_every)
      steps = range(0, int(total_steps) + every, every)
      table = jnp.asarray(_moved(steps, active, drop_rate, total_steps))
      return table[jnp.minimum(step // every, len(table) - 1)]
    # Nearly, for traced settings or very many refreshes.
    number = lambda x: jnp.asarray(x, jnp.float32)
    progress = jnp.minimum(number(step) / number(total_steps), 1)
    rate = number(drop_rate) / 2 * (1 + jnp.cos(jnp.pi * progress))
    return jnp.floor(active * (rate + 4e-7)).astype(jnp.int32)

  def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
    count = state.step_count

    def ranks(source: str, draw: int, gradient: Any) -> Any:
      if source == 'random':
        step_key = jax.random.fold_in(state.key, count)
        draw_key = jax.random.fold_in(step_key, draw)
        return sparse_masks.random_bits(draw_key, updates)
      scores = gradient if source == 'gradient' else params
      return jax.tree.map(lambda x: sparse_masks.rank_bits(jnp.abs(x)), scores)

    def refresh() -> Any:
      gradient = devices.average_ascent(updates, **extra)
      size = tree_math.size(updates)
      active = sparse_masks.num_kept(sparsity, size)
      moved = jnp.minimum(num_moved(count, active), min(active, size - active))
      dropped, grown = ranks(drop, 0, gradient), ranks(growth, 1, gradient)
      mask = sparse_masks.drop_and_grow(state.mask, dropped, grown, moved)
      usable = tree_math.is_usable(tree_math.norm(gradient))
      return optax.tree.where(usable, mask, state.mask)

    mask = on_refresh(count, refresh_every, refresh, lambda: state.mask)
    kept = jax.tree.map(lambda m, g: jnp.where(m, g, 0), state.mask, updates)
    return kept, DynamicState(tree_math.increment(count), mask, state.key)

  return optax.GradientTransformationExtraArgs(init, update)


def _moved(
  steps: range, active: int, drop_rate: float, total_steps: int
) -> np.ndarray:
  """Returns `floor(active * r)` at some steps, exactly.

  On the host: float32 counts to 2**24 only. Cosines at thirds and halves are
  fractions, which alone can give whole results, so they are computed exactly;
  for all others float64 is accurate enough.
  """
  progress = np.minimum(np.asarray(steps, np.float64) / total_steps, 1)
  doubled = 2 * np.cos(np.pi * progress)
  quarter = fractions.Fraction(str(drop_rate)) * active / 4
  moved = np.floor(float(quarter) * (2 + doubled))
  for whole, sixths in ((2, 0), (1, 2), (0, 3), (-1, 4), (-2, 6)):
    at = np.minimum(np.asarray(steps) * 6, 6 * total_steps)
    moved[at == sixths * total_steps] = math.floor(quarter * (2 + whole))
  return moved.astype(np.int32)


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
  r"""Sparse SAM by dynamic sparse training (SSAM-D): drops and grows its mask.

  Of the N entries that may be perturbed, only `a = floor((1 - sparsity) * N)`
  in a mask `m` are, at first random ones. All are updated; no time is saved.

  .. math::
    \epsilon &= \rho\, m g / (\|g\| + 10^{-12}), \quad g = \nabla L(w) \\
    \tilde g &= \nabla L(w + \epsilon) \\
    r &= (c / 2) (1 + \cos(\pi \min(t / T, 1))) \\
    d &= \min(\lfloor a r \rfloor, N - a)

  After its use in every `refresh_every`-th step, :math:`t = 0` included, the
  mask drops its :math:`d` entries with the smallest :math:`|g|`, and grows as
  many others at random. The floor is exact unless settings are injected. A
  gradient that is 0 or not finite leaves the mask unchanged. The norm is of the
  whole gradient, so the perturbation is shorter than `rho`.

  Args:
    rho: radius, at least 0, or a schedule of it by the step; 0.05 is SAM's.
    sparsity: fraction not perturbed, in [0, 1]: 0 is SAM, 1 the base optimizer.
    drop_rate: c, fraction of the mask that the first refresh moves, in (0, 1].
    refresh_every: number of steps from one mask to the next, at least 1.
    total_steps: T, number of steps of the whole training, at least 1.
    key: integer seed or typed key, the same on all devices.
    mask, axis_name, sync_ascent: see `optax_sam.sharpness_aware`. Entries are
      dropped by the average in any case.

  Returns:
    A gradient transformation to place first in `optax.chain`, whose `update`
    needs `value_fn` or `grad_fn`; state: mask and key. It costs 2 gradients.

  .. note:: In the authors' code the size of the mask drifts by one. Only
    growth is limited to the entries that are left, so the mask becomes smaller
    if `sparsity < r / (1 + r)`. Here its size is exact. `drop_rate` and
    criteria are the defaults of their command line, where `sparsity` is 0.2;
    their README's example has 0.5. Their criterion 'weight', an option of
    `keep_dynamic`, reads perturbed weights. Unverified: the paper's values.

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
  steps = {'refresh_every': refresh_every, 'total_steps': total_steps}
  keep = keep_dynamic(sparsity, drop_rate=drop_rate, key=key, **steps)
  perturbation = optax.chain(scale_to_radius(rho), keep)
  return compose(Choices(perturbation), mask, axis_name, sync_ascent)
