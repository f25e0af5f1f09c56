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
  """Keeps the entries with the largest empirical Fisher information: SSAM-F.

  Every `refresh_every` steps, before the mask is used, with `n` the smaller of
  `num_samples` and the batch size and `N` the number of entries that may be
  perturbed::

    F    = sum over the first n examples of (gradient of their loss at w)^2
    mask = the floor((1 - sparsity) * N) largest of F     # ties by position
    epsilon = mask * epsilon

  A score that isn't finite leaves the mask as it was; the first one is full.
  Scores are compared in float32. The memory of 16 examples' gradients is
  needed at a refresh. On several devices each sums over its own share of the
  examples, and squares are never taken of an average.

  Placed after `scale_to_radius`, the norm is that of the full gradient and
  epsilon is shorter than rho, as in the authors' program; placed before it,
  the radius is kept. See `optax_sam.sparse_sam_fisher` for more on the program.

  Args:
    sparsity: share of the entries that is not perturbed, a Python number in
      [0, 1]. 0.5 is the authors' headline, 0.5 to 0.99 what they swept.
    num_samples: number of examples, a Python int of at least 1, taken from the
      front of the batch; the authors' README has 16 and 128.
    refresh_every: number of steps from one mask to the next, at least 1; one
      epoch in the authors' README.
    pattern: 'global', or 'n:m' such as '2:4' for the n largest of every m
      consecutive inputs of a unit, whatever `sparsity` says; see
      `keep_n_of_m`.

  Returns:
    A perturbation, for `optax_sam.sharpness_aware` alone, whose `update` then
    needs `per_example_value_fn` and `batch`. Keeps the mask
    (`TopFisherState`). Cost: the gradients of n examples at a refresh.

  Raises:
    ValueError: if a Python value is out of range, and in `update` without the
      losses of single examples.

  References:
    Mi, Shen, Ren, Zhou, Sun, Ji, Tao, `Make Sharpness-Aware Minimization
    Stronger: A Sparsified Perturbation Approach
    <https://arxiv.org/abs/2210.05177>`_, NeurIPS 2022. Its initial mask,
    refresh timing and `num_samples` could not be confirmed.

  Perturbs only the weights of the largest inputs:

  >>> import optax_sam
  >>> method = optax_sam.sharpness_aware(
  ...   optax.chain(
  ...     optax_sam.perturbations.scale_to_radius(0.5),
  ...     keep_top_fisher(0.5, refresh_every=10),
  ...   )
  ... )
  >>> w, x = jnp.ones(4), jnp.array([[1.0, 4.0, 2.0, 3.0]])
  >>> state = method.init(w)
  >>> _, state = method.update(
  ...   w, state, w, per_example_value_fn=lambda w, x: x @ w, batch=x
  ... )
  >>> state.perturbation[1].mask.tolist()
  [False, True, False, True]
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
  """Keeps entries by dynamic sparse training, dropping the flattest: SSAM-D.

  `a = floor((1 - sparsity) * N)` of the N entries that may be perturbed are
  active, at first at random. At every step the mask is used as it is; then,
  every `refresh_every` steps, with `t` the step, counted from 0, and
  `T = total_steps`::

    r = drop_rate / 2 * (1 + cos(pi * min(t / T, 1)))
    d = min(floor(a * r), N - a)
    the d active entries with the smallest abs(g) are dropped,
    d of those that were inactive are grown, uniformly at random

  So exactly `a` entries are active at every step. Scores are compared in
  float32. An update of zeros, as of a gradient that isn't finite, leaves the
  mask. See `optax_sam.sparse_sam_dynamic` for the authors' program, whose
  count drifts, and `keep_top_fisher` for the order of the pieces.

  Args:
    sparsity: share of the entries that is not perturbed, a Python number in
      [0, 1].
    drop_rate: share of the active entries that the first refresh moves, in
      (0, 1].
    refresh_every: number of steps from one mask to the next, at least 1.
    total_steps: T, number of steps of the whole training, at least 1.
    key: integer seed or one typed key, the same on all devices; not that of
      the dropout.
    drop: by what the smallest are dropped: 'gradient', 'weight' (abs(w) at the
      unperturbed parameters) or 'random'.
    growth: by what the largest are grown, likewise. The defaults of this, of
      `drop`, `drop_rate` and `sparsity` are those of the authors' command
      line; whether they are the paper's could not be confirmed.

  Returns:
    A perturbation, from the ascent gradient to the same with entries of zero.
    Keeps the mask, a count and the key (`DynamicState`).

  Raises:
    ValueError: if a Python value is out of range, or the key is none.

  References:
    Mi, Shen, Ren, Zhou, Sun, Ji, Tao, `Make Sharpness-Aware Minimization
    Stronger: A Sparsified Perturbation Approach
    <https://arxiv.org/abs/2210.05177>`_, NeurIPS 2022.

  Of two active entries the flatter one moves on:

  >>> piece = keep_dynamic(0.5, refresh_every=2, total_steps=8, key=0)
  >>> g = jnp.array([1.0, 2.0, 3.0, 4.0])
  >>> state = piece.init(g)
  >>> for _ in range(2):
  ...   epsilon, state = piece.update(g, state)
  ...   print(epsilon.tolist())
  [1.0, 0.0, 3.0, 0.0]
  [0.0, 2.0, 3.0, 0.0]
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
  """Keeps the n largest of every m consecutive inputs of a unit, in size.

  The inputs of a leaf are all of its axes but the last, flattened, as in the
  kernels of Flax: `(in, out)`, `(height, width, in, out)`. Per output and group
  of m of them::

    epsilon_i = g_i if abs(g_i) is among the n largest else 0   # ties: first

  A leaf with fewer than two axes, or whose number of inputs m doesn't divide,
  is kept whole. Groups in the authors' follow-up to `keep_top_fisher` run along
  another axis of convolutions, for want of a transpose.

  Args:
    n: number of entries kept in a group, a Python int in [1, m].
    m: number of entries of a group, a Python int of at least n.

  Returns:
    A perturbation that keeps nothing.

  Raises:
    ValueError: if a value is out of range, or an array.

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

  With `g` the gradient at `w`, `l_j` the losses of single examples with their
  true labels, `t` the step, counted from 0, and `N` the number of entries that
  may be perturbed::

    every refresh_every steps, t = 0 included:
      F    = sum over the first num_samples examples of (gradient of l_j at w)^2
      mask = the floor((1 - sparsity) * N) largest of F   # ties by position
    epsilon = mask * rho * g / (norm(g) + 1e-12)
    u       = gradient at w + epsilon

  The norm is that of the full gradient and nothing is rescaled, so `epsilon`
  is shorter than `rho`: `rho * norm(mask * g) / norm(g)`. For a constant
  length join the two pieces the other way round, as in
  `chain(keep_top_fisher(...), scale_to_radius(rho))`. All parameters are
  updated, and no gradient is saved: this buys no speed. A score that isn't
  finite leaves the mask as it was.

  Rule and count are those of the authors' program, but for the error of its
  floating-point count, which is 0 of 10 entries at `sparsity=0.9`. It also
  starts with an empty mask and refreshes after a step, so that its first step
  isn't perturbed; it draws fresh examples; and it adds the first example's
  gradient to a leftover one before squaring. These are not reproduced. Initial
  mask, refresh timing, `num_samples` and `rho` of the paper could not be
  confirmed. The groups of 'n:m' run along the inputs of a unit, also in
  convolutions, where the authors' follow-up (arXiv 2306.17504) groups along
  another axis.

  Args:
    rho: radius in the unit of the parameters, a scalar of at least 0, or a
      schedule of it by the step. 0.05 is SAM's. The authors' README has 0.7 for
      ImageNet, perhaps a slip for 0.07.
    sparsity: share of the entries that is not perturbed, in [0, 1]: 0 is SAM,
      1 the base optimizer. 0.5 is the authors' headline; they tried 0.5 to
      0.99.
    num_samples: number of examples in F, at least 1; no more than the batch
      has are taken. The authors' README has 16 and 128, and up to 1024.
    refresh_every: number of steps from one mask to the next, at least 1. The
      authors' README: one epoch; they tried 1 to 10.
    pattern: 'global', or 'n:m' such as '2:4' for the n largest of every m
      consecutive inputs of a unit, whatever `sparsity` says. Leaves with fewer
      than two axes, or whose inputs m doesn't divide, are perturbed whole.
    mask: leaves that may be perturbed; see `optax_sam.sharpness_aware`.
    axis_name: device axis to average over; see `optax_sam.sharpness_aware`.
    sync_ascent: whether the ascent gradient is averaged too; see there.
      Of the examples in F each device takes an equal share, from its own.

  Returns:
    A gradient transformation, to be placed first in `optax.chain`; its
    `update` needs `per_example_value_fn` and `batch`. With batch norm the
    former should use the running statistics, since one example has no
    variance, beside a `value_fn` in training mode. Cost:
    2 + `num_samples` / (examples of the batch * `refresh_every`) gradients.
    Keeps a mask of bools.

  Raises:
    ValueError: if a Python value is out of range, and in `update` if what it
      needs was not passed.

  References:
    Mi, Shen, Ren, Zhou, Sun, Ji, Tao, `Make Sharpness-Aware Minimization
    Stronger: A Sparsified Perturbation Approach
    <https://arxiv.org/abs/2210.05177>`_, NeurIPS 2022.

  >>> import jax, jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.sparse_sam_fisher(sparsity=0.5, refresh_every=10)
  >>> losses = lambda w, x: jnp.square(x @ w)
  >>> w, x = jnp.ones(4), jnp.array([[1.0, 4.0, 2.0, 3.0]])
  >>> g = jax.grad(lambda w: losses(w, x).mean())(w)
  >>> _, state = tx.update(
  ...   g, tx.init(w), w, per_example_value_fn=losses, batch=x
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
  """Sparse SAM by dynamic sparse training (SSAM-D): a mask that wanders.

  With `g` the gradient at `w`, `t` the step, counted from 0,
  `T = total_steps`, `N` the number of entries that may be perturbed, and
  `a = floor((1 - sparsity) * N)` of them in the mask, at first at random::

    epsilon = mask * rho * g / (norm(g) + 1e-12)
    u       = gradient at w + epsilon
    every refresh_every steps, t = 0 included, for the steps that follow:
      r = drop_rate / 2 * (1 + cos(pi * min(t / T, 1)))
      d = min(floor(a * r), N - a)
      d entries of the mask with the smallest abs(g) are dropped,
      d that were outside before are grown, uniformly at random

  The norm is that of the full gradient and nothing is rescaled, so `epsilon`
  is shorter than `rho`: `rho * norm(mask * g) / norm(g)`. All parameters are
  updated, and no gradient is saved: this buys no speed. A gradient that is 0
  or not finite leaves the mask as it was.

  Exactly `a` entries are perturbed at every step. In the authors' program the
  count drifts by one and, as only growth is limited to what is left, falls
  below the target where `sparsity < r / (1 + r)`. `keep_dynamic` also drops
  and grows by the size of the weights, which that program reads while they are
  perturbed.

  Args:
    rho: radius in the unit of the parameters, a scalar of at least 0, or a
      schedule of it by the step. 0.05 is SAM's; the paper's per data set could
      not be confirmed.
    sparsity: share of the entries that is not perturbed, in [0, 1]: 0 is SAM,
      1 the base optimizer. 0.5 is the default of the authors' command line;
      whether it is the paper's could not be confirmed, nor for `drop_rate`.
    drop_rate: share of the mask that the first refresh moves, in (0, 1]. 0.5
      is the default of the authors' command line.
    refresh_every: number of steps from one mask to the next, at least 1.
    total_steps: T, number of steps of the whole training, at least 1.
    key: integer seed or typed key, the same on all devices.
    mask: leaves that may be perturbed; see `optax_sam.sharpness_aware`.
    axis_name: device axis to average over; see `optax_sam.sharpness_aware`.
    sync_ascent: whether the ascent gradient is averaged too; see there.
      The entries are dropped by the average in any case.

  Returns:
    A gradient transformation, to be placed first in `optax.chain`; its
    `update` needs `value_fn` or `grad_fn`. Cost: 2 gradients. Keeps a mask of
    bools and the key.

  Raises:
    ValueError: if a Python value is out of range, and in `update` if what it
      needs was not passed.

  References:
    Mi, Shen, Ren, Zhou, Sun, Ji, Tao, `Make Sharpness-Aware Minimization
    Stronger: A Sparsified Perturbation Approach
    <https://arxiv.org/abs/2210.05177>`_, NeurIPS 2022.

  >>> import jax, jax.numpy as jnp, optax_sam
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
