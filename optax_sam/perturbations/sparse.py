"""Perturbations of some of the entries only."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import devices, masks, numerics, validation


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
  masks.check_sparsity(sparsity)
  validation.check_number('drop_rate', drop_rate, above=0, at_most=1)
  validation.check_count('refresh_every', refresh_every)
  validation.check_count('total_steps', total_steps)
  validation.check_key(key)
  sources = ('gradient', 'weight', 'random')
  validation.check_choice('drop', drop, sources)
  validation.check_choice('growth', growth, sources)

  def init(params: optax.Params) -> DynamicState:
    typed = validation.as_key(key)
    active = masks.num_kept(sparsity, numerics.size(params))
    mask = masks.largest(masks.random_bits(typed, params), active)
    return DynamicState(jnp.zeros((), jnp.int32), mask, typed)

  def num_moved(count: jax.Array, tree: Any) -> jax.Array:
    size, dtype = numerics.size(tree), numerics.accumulator_dtype(tree)
    active = masks.num_kept(sparsity, size)
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
        return masks.random_bits(jax.random.fold_in(step_key, draw), updates)
      scores = gradient if source == 'gradient' else params
      return jax.tree.map(lambda x: masks.rank_bits(jnp.abs(x)), scores)

    def renew() -> Any:
      gradient = devices.average(updates, None if is_synced else axis_name)
      moved = num_moved(state.count, updates)
      mask = masks.drop_and_grow(
        state.mask, ranks(drop, 0, gradient), ranks(growth, 1, gradient), moved
      )
      usable = numerics.is_usable(numerics.norm(gradient))
      return numerics.select(usable, mask, state.mask)

    mask = on_refresh(state.count, refresh_every, renew, lambda: state.mask)
    new_state = DynamicState(numerics.increment(state.count), mask, state.key)
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
      lambda g: jnp.where(masks.n_of_m(jnp.abs(g), n, m), g, 0), updates
    )
  )


@jax.jit
def keep_entries(mask: Any, updates: Any) -> Any:
  """Puts zeros where a mask is False."""
  return jax.tree.map(lambda m, g: jnp.where(m, g, 0), mask, updates)


def on_refresh(
  count: jax.Array,
  every: Any,
  renew: Callable[[], Any],
  keep: Callable[[], Any],
) -> Any:
  """Branches inside a traced program, and in Python outside of one."""
  due = count % jnp.asarray(every, jnp.int32) == 0
  if isinstance(due, jax.core.Tracer):
    return jax.lax.cond(due, renew, keep)
  return renew() if due else keep()
