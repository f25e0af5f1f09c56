"""Selections: which examples of the batch feed each of the two gradients?

A selection has `init(params)` for what it stores, and `select(objective,
params, state, count)`, which names the objective of the ascent gradient and,
given the perturbed parameters, that of the descent gradient. Chosen examples
are gathered before a gradient is taken, so that the others cost nothing.
"""

import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import numerics, validation
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
    select: from (objective, parameters, state, count) to `Selected`.
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
  """Takes both gradients over the whole batch."""

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

  Args:
    fraction: size of the part: a number of examples if an int, a fraction of
      the batch in (0, 1] if a float.
    key: integer seed or typed key to draw the part with, without replacement;
      None takes the first rows.
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

  One ranking at the unperturbed parameters serves both, so the smaller set is
  part of the larger one. Losses that aren't finite rank last, equal ones by
  their position.

  Args:
    ascent: size of the set for the ascent gradient: a number of examples if an
      int, a fraction of the batch in (0, 1] if a float. None takes no ascent
      gradient at all: Ordered SGD.
    descent: size of the set for the descent gradient, likewise.
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
    rows = largest(objective.losses(params), max(num_ascent, num_descent))
    descent_objective = objective.rows(rows[:num_descent])
    return Selected(
      objective.rows(rows[:num_ascent]) if num_ascent else None,
      lambda _: descent_objective,
    )

  return Selection(_no_state, select)


def sharpest(size: float) -> Selection:
  """Descends on the examples whose loss the perturbation raises most: ESAM.

  The perturbation is that of the whole batch; one more forward pass at the
  perturbed parameters ranks the examples by the rise of their losses.

  Args:
    size: size of the set for the descent gradient: a number of examples if an
      int, a fraction of the batch in (0, 1] if a float.
  """
  check_size('size', size)

  def select(
    objective: Objective, params: optax.Params, state: Any, count: jax.Array
  ) -> Selected:
    del state, count

    def descent(point: optax.Params) -> Objective:
      rise = objective.losses(point) - objective.losses(params)
      wanted = num_examples(size, objective.num_examples)
      return objective.rows(largest(rise, wanted))

    return Selected(objective, descent)

  return Selection(_no_state, select)


def micro_batches(size: int) -> Selection:
  """Perturbs every part of the batch by its own gradient: m-sharpness.

  Args:
    size: number of examples of a part, at least 1; parts are consecutive rows,
      the last one smaller if `size` doesn't divide the batch.
  """
  validation.check_static_integer('size', size)
  whole = all_examples()
  return Selection(whole.init, whole.select, micro_batch_size=size)


def largest(scores: jax.Array, size: int) -> jax.Array:
  """Returns the positions of the largest scores, the largest first."""
  scores = numerics.widen(jax.lax.stop_gradient(scores))
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
