"""Batch selections: which examples enter each of the two gradients?

A batch selection has `init(params)` for its state, and `select(view, params,
state, count)`, which returns the loss of the ascent gradient and, given the
perturbed parameters, the loss of the perturbed gradient. Chosen examples are
gathered before differentiation, so that the others cost nothing.

Rows of padding must have the loss 0 for all parameters:
`jnp.where(is_example, losses, 0)`. They count as rows in all sizes and means.
"""

import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine import devices
from optax_sam.engine.info import no_state
from optax_sam.engine.loss_view import LossView
from optax_sam.trees import tree_math


class Selected(NamedTuple):
  """The losses of the two gradients.

  Attributes:
    ascent: loss of the ascent gradient; None if it is the incoming gradient.
    descent: from the perturbed parameters to the loss of the gradient there.
    perturbs: whether there is an ascent gradient; if not, it is zero.
  """

  ascent: LossView | None
  descent: Callable[[optax.Params], LossView]
  perturbs: bool = True


class Selection(NamedTuple):
  """Chooses the examples of both gradients.

  Attributes:
    init: from the parameters to the state of the batch selection.
    select: from (loss of the batch, parameters, state, step from 0) to
      `Selected`.
    micro_batch_size: number of examples that are perturbed together, apart from
      the rest of the batch; None for all.
    needs_examples: whether it needs per-example losses, so that every step
      without them is refused, skipped ones too.
  """

  init: Callable[[optax.Params], Any]
  select: Callable[[LossView, optax.Params, Any, jax.Array], Selected]
  micro_batch_size: int | None = None
  needs_examples: bool = False


def all_examples() -> Selection:
  """Uses the whole batch for both gradients.

  Returns:
    A stateless batch selection.

  >>> view = LossView(value_fn=jnp.sum)
  >>> all_examples().select(view, jnp.ones(2), (), 0).descent(None) is view
  True
  """

  def select(
    view: LossView, params: optax.Params, state: Any, count: jax.Array
  ) -> Selected:
    del params, state, count
    return Selected(None, lambda _: view)

  return Selection(no_state, select)


def top_k(ascent: float | None, descent: float) -> Selection:
  """Uses the examples with the largest unperturbed losses for each gradient.

  Both gradients are of the mean loss over a set. One ranking, by the losses at
  the unperturbed parameters, gives both sets, so the larger one contains the
  smaller one. Losses that aren't finite rank last, equal ones by their
  position; rows of padding, with a loss of 0, rank after examples with a
  positive one. Each device ranks its own rows. For the papers see
  `optax_sam.k_sam` and `optax_sam.ordered_sgd`.

  Args:
    ascent: size of the set of the ascent gradient: a number of examples if an
      int of at least 1, a fraction of the batch if a float in (0, 1]. None
      computes no ascent gradient.
    descent: size of the set of the perturbed gradient, like `ascent`.

  Returns:
    A stateless batch selection.

  >>> losses = lambda w, batch: jnp.square(w - batch)
  >>> batch = jnp.array([1.0, -4.0, 2.0, 3.0])
  >>> view = LossView(per_example_value_fn=losses, batch=batch)
  >>> selected = top_k(1, 0.5).select(view, jnp.float32(0), (), 0)
  >>> selected.ascent.batch.tolist(), selected.descent(None).batch.tolist()
  ([-4.0], [-4.0, 3.0])
  """
  if ascent is not None:
    check_size('ascent', ascent)
  check_size('descent', descent)

  def select(
    view: LossView, params: optax.Params, state: Any, count: jax.Array
  ) -> Selected:
    del state, count
    batch_size = view.num_examples
    num_ascent = 0 if ascent is None else num_examples(ascent, batch_size)
    num_descent = num_examples(descent, batch_size)
    rows = largest(view.losses_before(params), max(num_ascent, num_descent))
    descent_view = view.rows(rows[:num_descent])
    return Selected(
      view.rows(rows[:num_ascent]) if num_ascent else None,
      lambda _: descent_view,
      perturbs=num_ascent > 0,
    )

  return Selection(no_state, select, needs_examples=True)


def weighted(weights_fn: Callable[[Any], jax.Array]) -> Selection:
  r"""Weighs the examples of both gradients: ImbSAM and Focal-SAM.

  With the loss :math:`S(w) = \sum_i v_i \ell_i(w) / B`, where :math:`v_i` are
  the weights and :math:`B` is the size of the batch, both gradients are those
  of :math:`S`. With the combination rule `descents.add_change` the direction
  includes the unperturbed gradient of the rest, :math:`u = g + \nabla S(w +
  \epsilon) - \nabla S(w)`, for 3 gradients. This is ImbSAM if the weights are 1
  for examples of rare classes and 0 for others, and Focal-SAM if they are
  :math:`\lambda (1 - \pi_c)^\gamma`, where the class has the fraction
  :math:`\pi_c` of the training examples. Weights of 1 give SAM, weights of 0
  the base optimizer.

  Args:
    weights_fn: from the batch to the weights, shape (B,).

  Returns:
    A stateless batch selection.

  References:
    Zhou et al., `ImbSAM <https://arxiv.org/abs/2308.07815>`_, ICCV 2023; Li et
    al., `Focal-SAM <https://arxiv.org/abs/2505.01660>`_, ICML 2025.

  >>> losses = lambda w, batch: w * batch
  >>> batch = jnp.array([1.0, 4.0])
  >>> view = LossView(per_example_value_fn=losses, batch=batch)
  >>> rare = weighted(lambda batch: jnp.where(batch > 2, 1.0, 0.0))
  >>> float(rare.select(view, 1.0, (), 0).ascent.value(jnp.float32(1.0)))
  2.0
  """

  def select(view: LossView, *_: Any) -> Selected:
    count, losses_of = view.num_examples, view.per_example_value_fn

    def losses(params: optax.Params, batch: Any) -> jax.Array:
      weights = jax.lax.stop_gradient(weights_fn(batch))
      if jnp.shape(weights) != (count,):
        msg = (
          f'weights_fn must return one weight per example, shape ({count},), '
          f'got shape {jnp.shape(weights)}.'
        )
        raise ValueError(msg)
      assert losses_of is not None  # checked by `num_examples`
      found = losses_of(params, batch)
      return weights.astype(found.dtype) * found

    sharp = dataclasses.replace(
      view.on(view.batch), per_example_value_fn=losses
    )
    return Selected(sharp, lambda _: sharp)

  return Selection(no_state, select, needs_examples=True)


def largest(scores: jax.Array, size: int) -> jax.Array:
  """Returns the positions of the largest scores, the largest first."""
  scores = tree_math.widen(devices.replicated(jax.lax.stop_gradient(scores)))
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
  validation.check_static(name, size)
  largest = math.inf if isinstance(size, numbers.Integral) else 1
  if not validation.is_python_number(size) or not 0 < size <= largest:
    msg = (
      f'{name} must be a number of examples (an int of at least 1) or a '
      f'fraction of the batch (a float in (0, 1]), got {size!r}.'
    )
    raise ValueError(msg)
