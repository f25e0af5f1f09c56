"""Sparse SAM: perturbs only some of the entries."""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine import devices, partition
from optax_sam.engine.loss_view import Objective
from optax_sam.engine.micro_batches import sum_over_chunks
from optax_sam.engine.perturbation import on_refresh, scale_to_radius
from optax_sam.engine.sharpness_aware import sharpness_aware
from optax_sam.trees import sparse_masks, tree_math

_FISHER_CHUNK = 16  # examples whose gradients are in memory at a time


class TopFisherState(NamedTuple):
  """State of `keep_top_fisher`.

  Attributes:
    count: number of steps so far, a scalar int32.
    mask: which entries are perturbed, bools like the parameters.
  """

  count: jax.Array
  mask: Any


def keep_top_fisher(
  sparsity: float = 0.5,
  *,
  num_samples: int = 128,
  refresh_every: int,
  pattern: str = 'global',
) -> optax.GradientTransformationExtraArgs:
  """Zeroes entries with a small empirical Fisher information: SSAM-F.

  The mask is that of `optax_sam.sparse_sam_fisher`. Placed after
  `scale_to_radius`, the norm is that of the full gradient and epsilon is
  shorter than rho, as in the authors' program; placed before it, epsilon has
  length rho.

  Args:
    sparsity: fraction of the entries that is not perturbed, a Python number
      in [0, 1].
    num_samples: number of examples, a Python int of at least 1, taken from the
      front of the batch.
    refresh_every: number of steps from one mask to the next, at least 1.
    pattern: 'global', or 'n:m' such as '2:4', as in `keep_n_of_m`.

  Returns:
    A perturbation with state (`TopFisherState`), only for use in
    `optax_sam.sharpness_aware`, whose `update` then needs
    `per_example_value_fn` and `batch`.
  """
  sparse_masks.check_sparsity(sparsity)
  validation.check_static_integer('num_samples', num_samples)
  validation.check_count('refresh_every', refresh_every)
  grouping = sparse_masks.parse_pattern(pattern)

  def init(params: optax.Params) -> TopFisherState:
    everything = jax.tree.map(lambda p: jnp.ones_like(p, dtype=bool), params)
    return TopFisherState(jnp.zeros((), jnp.int32), everything)

  def choose(scores: Any) -> Any:
    if grouping is not None:
      return jax.tree.map(lambda s: sparse_masks.n_of_m(s, *grouping), scores)
    kept = sparse_masks.num_kept(sparsity, tree_math.size(scores))
    return sparse_masks.largest(scores, kept)

  def update(
    updates: Any,
    state: Any,
    params: Any = None,
    *,
    objective: Objective | None = None,
    axis_name: Any = None,
    **_: Any,
  ) -> tuple[Any, TopFisherState]:
    if objective is None:
      msg = (
        'keep_top_fisher needs the gradients of single examples: use it in '
        'the perturbation of optax_sam.sharpness_aware.'
      )
      raise ValueError(msg)

    def renew() -> Any:
      scores = _fisher_information(objective, params, num_samples, axis_name)
      return _where_finite(scores, choose(scores), state.mask)

    mask = on_refresh(state.count, refresh_every, renew, lambda: state.mask)
    kept = keep_entries(mask, updates)
    return kept, TopFisherState(tree_math.increment(state.count), mask)

  return optax.GradientTransformationExtraArgs(init, update)


def _where_finite(scores: Any, on_true: Any, on_false: Any) -> Any:
  finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(scores)]
  every = jnp.all(jnp.stack(finite)) if finite else jnp.ones((), bool)
  return tree_math.select(every, on_true, on_false)


def _fisher_information(
  objective: Objective, params: Any, num_samples: int, axis_name: Any
) -> Any:
  """Sums the squared gradients of the first examples over all devices."""
  if axis_name is not None:
    num_samples = math.ceil(num_samples / jax.lax.psum(1, axis_name))
  samples = objective.rows(slice(num_samples))
  local = devices.as_local(params, axis_name)

  def squared_gradient(row: Any) -> Any:
    one = jax.tree.map(lambda x: x[None], row)
    _, gradient = samples.on(one).value_and_grad(local)
    return jax.tree.map(lambda g: jnp.square(tree_math.widen(g)), gradient)

  def total(rows: Any) -> Any:
    squares = jax.vmap(squared_gradient)(rows)
    return jax.tree.map(lambda s: jnp.sum(s, axis=0), squares)

  scores = sum_over_chunks(total, samples.batch, _FISHER_CHUNK, axis_name)
  return scores if axis_name is None else jax.lax.psum(scores, axis_name)


class DynamicState(NamedTuple):
  """State of `keep_dynamic`.

  Attributes:
    count: number of steps so far, a scalar int32.
    mask: which entries are perturbed, bools like the parameters.
    key: typed PRNG key that all draws derive from.
  """

  count: jax.Array
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
  """Zeroes entries by dynamic sparse training, which drops the flattest: SSAM-D.

  The mask is that of `optax_sam.sparse_sam_dynamic`, with scores compared in
  float32. It returns the update with the mask as it is, then refreshes the
  mask. An update of zeros leaves it unchanged. For the order in a chain see
  `keep_top_fisher`.

  Args:
    sparsity: fraction of the entries that is not perturbed, a Python number
      in [0, 1].
    drop_rate: fraction of the mask that the first refresh moves, in (0, 1].
    refresh_every: number of steps from one mask to the next, at least 1.
    total_steps: number of steps of the whole training, at least 1.
    key: integer seed or typed key, the same on all devices, used for nothing
      else, such as dropout.
    drop: 'gradient' drops the smallest `abs(g)`, 'weight' the smallest
      `abs(w)` at the unperturbed parameters; or 'random'.
    growth: the same for what is grown, where the largest are.

  Returns:
    A perturbation with state (`DynamicState`).
  """
  sparse_masks.check_sparsity(sparsity)
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
    return DynamicState(jnp.zeros((), jnp.int32), mask, typed)

  def num_moved(count: jax.Array, tree: Any) -> jax.Array:
    size, dtype = tree_math.size(tree), tree_math.accumulator_dtype(tree)
    active = sparse_masks.num_kept(sparsity, size)
    progress = jnp.minimum(
      count.astype(dtype) / jnp.asarray(total_steps, dtype), 1.0
    )
    rate = jnp.asarray(drop_rate, dtype) / 2 * (1 + jnp.cos(jnp.pi * progress))
    moved = jnp.floor(active * rate).astype(jnp.int32)
    # No more than are active: of many, floats may round up.
    return jnp.minimum(moved, min(active, size - active))

  def update(
    updates: Any,
    state: Any,
    params: Any = None,
    *,
    axis_name: Any = None,
    is_synced: bool = False,
    **_: Any,
  ) -> tuple[Any, DynamicState]:
    def ranks(source: str, draw: int, gradient: Any) -> Any:
      if source == 'random':
        step_key = jax.random.fold_in(state.key, state.count)
        return sparse_masks.random_bits(
          jax.random.fold_in(step_key, draw), updates
        )
      scores = gradient if source == 'gradient' else params
      return jax.tree.map(lambda x: sparse_masks.rank_bits(jnp.abs(x)), scores)

    def renew() -> Any:
      gradient = devices.average(updates, None if is_synced else axis_name)
      moved = num_moved(state.count, updates)
      mask = sparse_masks.drop_and_grow(
        state.mask, ranks(drop, 0, gradient), ranks(growth, 1, gradient), moved
      )
      usable = tree_math.is_usable(tree_math.norm(gradient))
      return tree_math.select(usable, mask, state.mask)

    mask = on_refresh(state.count, refresh_every, renew, lambda: state.mask)
    new_state = DynamicState(tree_math.increment(state.count), mask, state.key)
    return keep_entries(state.mask, updates), new_state

  return optax.GradientTransformationExtraArgs(init, update)


def keep_n_of_m(n: int, m: int) -> optax.GradientTransformation:
  """Zeroes all but the n largest of every m consecutive inputs of a unit.

  The inputs of a leaf are all of its axes but the last, flattened, as in the
  kernels of Flax: `(in, out)`, `(height, width, in, out)`. Per output and group
  of m of them::

    epsilon_i = g_i if abs(g_i) is among the n largest else 0   # ties: first

  A leaf with fewer than two axes, or whose number of inputs m does not divide,
  is unchanged. The authors group convolutions along another axis.

  Args:
    n: number of entries left in a group, a Python int in [1, m].
    m: number of entries of a group, a Python int of at least n.

  Returns:
    A stateless perturbation.

  References:
    Mi, Shen, Ren, Zhou, Xu, Sun, Liu, Ji, Tao, `Systematic Investigation of
    Sparse Perturbed Sharpness-Aware Minimization Optimizer
    <https://arxiv.org/abs/2306.17504>`_, 2023.

  >>> piece = keep_n_of_m(1, 2)
  >>> piece.update(jnp.array([[3.0], [-4.0]]), piece.init(None))[0].tolist()
  [[0.0], [-4.0]]
  """
  validation.check_static_integer('n', n)
  validation.check_static_integer('m', m, at_least=n)
  return optax.stateless(
    lambda updates, _: jax.tree.map(
      lambda g: jnp.where(sparse_masks.n_of_m(jnp.abs(g), n, m), g, 0), updates
    )
  )


@jax.jit
def keep_entries(mask: Any, updates: Any) -> Any:
  """Puts zeros where a mask is False."""
  return jax.tree.map(lambda m, g: jnp.where(m, g, 0), mask, updates)


def sparse_sam_fisher(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  sparsity: float = 0.5,
  num_samples: int = 128,
  refresh_every: int,
  pattern: str = 'global',
  mask: partition.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Sparse SAM by Fisher information (SSAM-F): perturbs what matters most.

  With `g` the gradient at `w`, `l_j` the per-example losses with true labels,
  `t` the step from 0, and `N` the number of entries that may be perturbed::

    every refresh_every steps, t = 0 included:
      F    = sum over the first num_samples examples of (gradient of l_j at w)^2
      mask = the floor((1 - sparsity) * N) largest of F   # ties by position
    epsilon = mask * rho * g / (norm(g) + 1e-12)
    u       = gradient at w + epsilon

  The norm is that of the full gradient, so `epsilon` is shorter than `rho`. For
  a constant length chain the two pieces the other way round:
  `chain(keep_top_fisher(...), scale_to_radius(rho))`. All parameters are
  updated, and no time is saved. Scores are compared in float32; one that is not
  finite leaves the mask unchanged. The first mask is full.

  Rule and count are those of the authors' program, except for the error of its
  floating-point count, which is 0 of 10 entries at `sparsity=0.9`. Unlike here,
  it starts with an empty mask and refreshes after a step, so its first step is
  not perturbed; it draws fresh examples; and it adds the first example's
  gradient to a leftover one before squaring. Unverified: initial mask, refresh
  timing, `num_samples` and `rho` of the paper. Groups of 'n:m' run along the
  inputs of a unit, also in convolutions; the authors' follow-up (arXiv
  2306.17504) groups along another axis.

  Args:
    rho: radius, at least 0, or a schedule of it by the step; 0.05 is SAM's. The
      authors' README has 0.7 for ImageNet, perhaps a slip for 0.07.
    sparsity: fraction of the entries that is not perturbed, in [0, 1]: 0 is
      SAM, 1 the base optimizer. The authors advertise 0.5 and tried up to 0.99.
    num_samples: number of examples in F, at least 1; at most those of the batch
      are taken. The authors' README has 16 and 128, and up to 1024.
    refresh_every: number of steps from one mask to the next, at least 1. The
      authors' README: one epoch; they tried 1 to 10.
    pattern: 'global', or 'n:m' such as '2:4' for the n largest of every m
      consecutive inputs of a unit, for any `sparsity`. Leaves with fewer than
      two axes, or whose inputs m does not divide, are perturbed entirely.
    mask: leaves that may be perturbed; see `optax_sam.sharpness_aware`.
    axis_name: device axis to average over; see `optax_sam.sharpness_aware`.
    sync_ascent: whether the ascent gradient is averaged too; see there.
      Each device takes an equal number of examples in F, from its own.

  Returns:
    A gradient transformation, to be placed first in `optax.chain`. Its `update`
    needs `per_example_value_fn` and `batch`. With batch norm pass a `value_fn`
    in training mode too, and let the former use the running statistics, as one
    example has no variance. Cost: 2 + `num_samples` / (batch size *
    `refresh_every`) gradients, and the memory of 16 examples' gradients. State:
    a mask of bools.

  References:
    Mi, Shen, Ren, Zhou, Sun, Ji, Tao, `Make Sharpness-Aware Minimization
    Stronger: A Sparsified Perturbation Approach
    <https://arxiv.org/abs/2210.05177>`_, NeurIPS 2022.

  >>> import jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.sparse_sam_fisher(sparsity=0.5, refresh_every=10)
  >>> losses = lambda w, x: jnp.square(x @ w)
  >>> w, x = jnp.ones(4), jnp.array([[1.0, 4.0, 2.0, 3.0]])
  >>> _, state = tx.update(
  ...   w, tx.init(w), w, per_example_value_fn=losses, batch=x
  ... )
  >>> state.perturbation[1].mask.tolist()
  [False, True, False, True]
  """
  return sharpness_aware(
    optax.chain(
      scale_to_radius(rho),
      keep_top_fisher(
        sparsity,
        num_samples=num_samples,
        refresh_every=refresh_every,
        pattern=pattern,
      ),
    ),
    mask=mask,
    axis_name=axis_name,
    sync_ascent=sync_ascent,
  )


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
      d = min(floor(a * r), N - a)
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
    mask: leaves that may be perturbed; see `optax_sam.sharpness_aware`.
    axis_name: device axis to average over; see `optax_sam.sharpness_aware`.
    sync_ascent: whether the ascent gradient is averaged too; see there.
      Entries are dropped by the average in any case.

  Returns:
    A gradient transformation, to be placed first in `optax.chain`. Its `update`
    needs `value_fn` or `grad_fn`. Cost: 2 gradients. State: a mask of bools and
    the key.

  References:
    Mi, Shen, Ren, Zhou, Sun, Ji, Tao, `Make Sharpness-Aware Minimization
    Stronger: A Sparsified Perturbation Approach
    <https://arxiv.org/abs/2210.05177>`_, NeurIPS 2022.

  >>> import jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.sparse_sam_dynamic(
  ...   2.0, sparsity=0.75, refresh_every=1, total_steps=10, key=0
  ... )
  >>> w = jnp.zeros(16)
  >>> u, _ = tx.update(jnp.ones(16), tx.init(w), w, grad_fn=lambda w: w)
  >>> sorted(u.tolist())[-5:]  # 4 of the 16, each of 2 / sqrt(16)
  [0.0, 0.5, 0.5, 0.5, 0.5]
  """
  return sharpness_aware(
    optax.chain(
      scale_to_radius(rho),
      keep_dynamic(
        sparsity,
        drop_rate=drop_rate,
        refresh_every=refresh_every,
        total_steps=total_steps,
        key=key,
      ),
    ),
    mask=mask,
    axis_name=axis_name,
    sync_ascent=sync_ascent,
  )
