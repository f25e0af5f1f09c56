"""Selections: which examples of the batch feed each of the two gradients?

A selection has `init(params)` for what it stores, and `select(objective,
params, state, count)`, which names the objective of the ascent gradient and,
given the perturbed parameters, that of the descent gradient. Chosen examples
are gathered before a gradient is taken, so that the others cost nothing.

Rows that only fill a batch up must have the loss 0, whatever the parameters:
`jnp.where(is_example, losses, 0)`. They count as rows in all sizes and means.
"""

import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import devices, numerics, validation
from optax_sam.objective import Objective


class Selected(NamedTuple):
  """What the two gradients are taken of.

  Attributes:
    ascent: objective of the ascent gradient; the objective that was given
      itself where the clean gradient serves, None where there is no ascent.
    descent: from the perturbed parameters to the objective of the gradient
      there.
  """

  ascent: Objective | None
  descent: Callable[[optax.Params], Objective]


class Selection(NamedTuple):
  """Chooses the examples of both gradients.

  Attributes:
    init: from the parameters to what the selection stores.
    select: from (objective, parameters, store, step from 0) to `Selected`.
    micro_batch_size: number of examples that are perturbed together, each such
      part of the batch by itself; None for all.
  """

  init: Callable[[optax.Params], Any]
  select: Callable[[Objective, optax.Params, Any, jax.Array], Selected]
  micro_batch_size: int | None = None


class RandomSubsetState(NamedTuple):
  """State of `random_subset` with a key.

  Attributes:
    key: typed PRNG key that all draws derive from.
  """

  key: jax.Array


def _no_state(params: optax.Params) -> optax.EmptyState:
  del params
  return optax.EmptyState()


def all_examples() -> Selection:
  """Takes both gradients over the whole batch.

  Returns:
    A selection that stores nothing, and needs no losses of single examples.

  >>> objective = Objective(value_fn=jnp.sum)
  >>> all_examples().select(objective, jnp.ones(2), (), 0).ascent is objective
  True
  """

  def select(
    objective: Objective, params: optax.Params, state: Any, count: jax.Array
  ) -> Selected:
    del params, state, count
    return Selected(objective, lambda _: objective)

  return Selection(_no_state, select)


def random_subset(
  fraction: float, key: jax.Array | int | None = None
) -> Selection:
  """Takes the ascent gradient over a part of the batch only.

  With `A` the part, drawn anew at every step t from `fold_in(key, t)`::

    ascent:  gradient of the mean loss over A at w
    descent: gradient of the mean loss over the batch at w + epsilon

  On several devices each takes a part of its own rows. See
  `optax_sam.subset_sam` for the paper and usual sizes.

  Args:
    fraction: size of A: examples if an int >= 1, a share if a float in (0, 1].
    key: integer seed or one typed key to draw A with, without replacement;
      None takes the first rows. The paper's choice could not be confirmed.

  Returns:
    A selection that stores the key, if there is one (`RandomSubsetState`).

  Raises:
    ValueError: as of `top_k`, and if the key is none.

  >>> losses = lambda w, batch: jnp.square(w - batch)
  >>> objective = Objective(per_example_value_fn=losses, batch=jnp.arange(4.0))
  >>> selected = random_subset(0.5).select(objective, jnp.float32(0), (), 0)
  >>> selected.ascent.batch.tolist()
  [0.0, 1.0]
  """
  check_size('fraction', fraction)
  if key is not None:
    validation.check_key(key)

  def init(params: optax.Params) -> RandomSubsetState | optax.EmptyState:
    if key is None:
      return _no_state(params)
    return RandomSubsetState(validation.as_key(key))

  def select(
    objective: Objective, params: optax.Params, state: Any, count: jax.Array
  ) -> Selected:
    del params
    size = num_examples(fraction, objective.num_examples)
    rows = slice(size)
    if key is not None:
      draw = jax.random.fold_in(state.key, count)
      rows = jax.random.permutation(draw, objective.num_examples)[:size]
    return Selected(objective.rows(rows), lambda _: objective)

  return Selection(init, select)


def top_k(ascent: float | None, descent: float) -> Selection:
  """Takes each gradient over the examples with the largest clean losses.

  With `l_i` the losses at the unperturbed parameters `w`::

    ascent:  gradient of the mean loss over the largest l_i at w
    descent: gradient of the mean loss over the largest l_i at w + epsilon

  One ranking serves both, so the smaller set is part of the larger one. Losses
  that aren't finite rank last, equal ones by their position; rows of padding,
  with a loss of 0, rank after examples with a positive one. On several devices
  each ranks its own rows. Papers: `optax_sam.k_sam`, `optax_sam.ordered_sgd`.

  Args:
    ascent: size of the first set: examples if an int of at least 1, a share of
      the batch if a float in (0, 1]. None takes no ascent gradient at all.
    descent: size of the second set, likewise.

  Returns:
    A selection that stores nothing.

  Raises:
    ValueError: if a size is out of range; in `update` without single losses.

  >>> losses = lambda w, batch: jnp.square(w - batch)
  >>> batch = jnp.array([1.0, -4.0, 2.0, 3.0])
  >>> objective = Objective(per_example_value_fn=losses, batch=batch)
  >>> selected = top_k(1, 0.5).select(objective, jnp.float32(0), (), 0)
  >>> selected.ascent.batch.tolist(), selected.descent(None).batch.tolist()
  ([-4.0], [-4.0, 3.0])
  """
  if ascent is not None:
    check_size('ascent', ascent)
  check_size('descent', descent)

  def select(
    objective: Objective, params: optax.Params, state: Any, count: jax.Array
  ) -> Selected:
    del state, count
    batch_size = objective.num_examples
    num_ascent = 0 if ascent is None else num_examples(ascent, batch_size)
    num_descent = num_examples(descent, batch_size)
    rows = largest(
      objective.losses_before(params), max(num_ascent, num_descent)
    )
    descent_objective = objective.rows(rows[:num_descent])
    return Selected(
      objective.rows(rows[:num_ascent]) if num_ascent else None,
      lambda _: descent_objective,
    )

  return Selection(_no_state, select)


def sharpest(size: float) -> Selection:
  """Descends on the examples whose loss the perturbation raises most: ESAM.

  With `l_i` the losses of the batch, one more forward pass ranks by::

    d_i = l_i(w + epsilon) - l_i(w)
    ascent:  gradient of the mean loss over the batch at w
    descent: gradient of the mean loss over the largest d_i at w + epsilon

  Both passes must see the same randomness, or `d_i` is noise. Padding doesn't
  rise, and ranks before examples whose loss falls. The rest is as
  in `top_k`; see `optax_sam.esam` for the paper and the authors' program.

  Args:
    size: size of the set: examples if an int, a share if a float in (0, 1].

  Returns:
    A selection that stores nothing.

  Raises:
    ValueError: as of `top_k`.

  >>> losses = lambda w, batch: jnp.square(w - batch)
  >>> batch = jnp.array([1.0, -4.0, 2.0, 3.0])
  >>> objective = Objective(per_example_value_fn=losses, batch=batch)
  >>> selected = sharpest(2).select(objective, jnp.float32(0), (), 0)
  >>> selected.descent(jnp.float32(-1)).batch.tolist()  # of [3, -7, 5, 7]
  [3.0, 2.0]
  """
  check_size('size', size)

  def select(
    objective: Objective, params: optax.Params, state: Any, count: jax.Array
  ) -> Selected:
    del state, count

    def descent(point: optax.Params) -> Objective:
      before, after = objective.losses_before(params), objective.losses(point)
      rise = numerics.widen(after) - numerics.widen(before)
      wanted = num_examples(size, objective.num_examples)
      return objective.rows(largest(rise, wanted))

    return Selected(objective, descent)

  return Selection(_no_state, select)


def micro_batches(size: int) -> Selection:
  """Perturbs every part of the batch by its own gradient: m-sharpness.

  With `gp_k` the perturbed gradient of part k, by an epsilon of its own, and
  `n_k` its number of examples::

    gp = sum over k of n_k * gp_k / sum of n_k

  The parts are consecutive rows, those of a device on several, the last one
  smaller if there is a remainder. See `optax_sam.m_sam` for usual sizes.

  Args:
    size: number of examples of a part, a Python int of at least 1.

  Returns:
    A selection that stores nothing.

  Raises:
    ValueError: as of `top_k`.

  >>> micro_batches(32).micro_batch_size
  32
  """
  validation.check_static_integer('size', size)
  whole = all_examples()
  return Selection(whole.init, whole.select, micro_batch_size=size)


def largest(scores: jax.Array, size: int) -> jax.Array:
  """Returns the positions of the largest scores, the largest first."""
  scores = numerics.widen(devices.whole(jax.lax.stop_gradient(scores)))
  # lax.top_k alone would rank a NaN before everything else.
  ranked = jnp.where(jnp.isfinite(scores), scores, -jnp.inf)
  return jax.lax.top_k(ranked, size)[1]


def num_examples(size: float, batch_size: int) -> int:
  """Returns a number of examples from a number or a fraction."""
  if isinstance(size, numbers.Integral):
    return min(int(size), batch_size)
  return min(max(1, round(size * batch_size)), batch_size)


def check_size(name: str, size: Any) -> None:
  """Raises unless a size is an int above 0 or a float in (0, 1]."""
  if isinstance(size, jax.Array):
    msg = (
      f'{name} shapes the compiled program and must be a Python number, got '
      f"an array. With optax.inject_hyperparams write static_args=('{name}',)."
    )
    raise ValueError(msg)
  is_number = validation.is_python_number(size)
  is_count = is_number and isinstance(size, numbers.Integral) and int(size) >= 1
  is_fraction = (
    is_number and not isinstance(size, numbers.Integral) and 0 < size <= 1
  )
  if not is_count and not is_fraction:
    msg = (
      f'{name} must be a number of examples (an int of at least 1) or a '
      f'fraction of the batch (a float in (0, 1]), got {size!r}.'
    )
    raise ValueError(msg)
