"""Perturbations of the entries that the Fisher information singles out."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import chunks, devices, masks, numerics, validation
from optax_sam.objective import Objective
from optax_sam.perturbations.sparse import keep_entries, on_refresh

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
  masks.check_sparsity(sparsity)
  validation.check_static_integer('num_samples', num_samples)
  validation.check_count('refresh_every', refresh_every)
  grouping = masks.parse_pattern(pattern)

  def init(params: optax.Params) -> TopFisherState:
    everything = jax.tree.map(lambda p: jnp.ones_like(p, dtype=bool), params)
    return TopFisherState(jnp.zeros((), jnp.int32), everything)

  def choose(scores: Any) -> Any:
    if grouping is not None:
      return jax.tree.map(lambda s: masks.n_of_m(s, *grouping), scores)
    kept = masks.num_kept(sparsity, numerics.size(scores))
    return masks.largest(scores, kept)

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
    return kept, TopFisherState(numerics.increment(state.count), mask)

  return optax.GradientTransformationExtraArgs(init, update)


def _where_finite(scores: Any, on_true: Any, on_false: Any) -> Any:
  finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(scores)]
  every = jnp.all(jnp.stack(finite)) if finite else jnp.ones((), bool)
  return numerics.select(every, on_true, on_false)


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
    return jax.tree.map(lambda g: jnp.square(numerics.widen(g)), gradient)

  def total(rows: Any) -> Any:
    squares = jax.vmap(squared_gradient)(rows)
    return jax.tree.map(lambda s: jnp.sum(s, axis=0), squares)

  scores = chunks.sum_over_chunks(
    total, samples.batch, _FISHER_CHUNK, axis_name
  )
  return scores if axis_name is None else jax.lax.psum(scores, axis_name)
