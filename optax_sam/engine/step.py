"""One step of a sharpness-aware method, from gradient to direction."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam.engine import info
from optax_sam.engine.descent import Descent, perturbed_gradient
from optax_sam.engine.devices import AveragingPlan
from optax_sam.engine.loss_view import LossView
from optax_sam.engine.micro_batches import sum_over_chunks
from optax_sam.engine.policy import Policy, always
from optax_sam.engine.selection import Selection, all_examples
from optax_sam.engine.transformation import accept
from optax_sam.trees import control_flow, tree_math
from optax_sam.trees.array_types import vary_like


class Choices(NamedTuple):
  """The four components of a method; by default those of SAM."""

  perturbation: Any
  policy: Policy = always()
  descent: Descent = perturbed_gradient()
  selection: Selection = all_examples()


class Ascent(NamedTuple):
  """The point of the perturbed gradient, and its examples.

  Attributes:
    epsilon: the perturbation, of the leaves that may be perturbed.
    state: next state of the perturbation.
    norm: norm of the ascent gradient over these leaves.
    examples: from the perturbed parameters to the loss to differentiate there.
  """

  epsilon: optax.Updates
  state: Any
  norm: jax.Array
  examples: Callable[[optax.Params], LossView]


class Second(NamedTuple):
  """A gradient at perturbed parameters, the loss there, and the norm."""

  gradient: optax.Updates
  loss: jax.Array
  norm: jax.Array


def take_step(
  choices: Choices,
  view: LossView,
  plan: AveragingPlan,
  local: optax.Updates,
  state: info.SharpnessAwareState,
  ascend: bool | None,
  extra_args: Mapping[str, Any],
) -> tuple[optax.Updates, info.SharpnessAwareState]:
  """Returns the direction and the next state, of floating-point leaves only.

  `local` is the unperturbed gradient of this device's examples, `ascend` the
  branch that the caller chose, None to follow the policy.
  """
  perturbation, policy, descent, selection = choices
  w = view.leaves.split(view.params)
  averaged = plan.clean(local)
  decided, policy_state = policy.decide(averaged, state.policy)

  def perturb(view: LossView, clean: optax.Updates) -> Ascent:
    """Computes the perturbation and the next state of its statistics."""
    selected = selection.select(view, w, state.selection, state.step_count)
    ascent = view if selected.ascent is None else selected.ascent

    def gradient_at(point: optax.Params) -> optax.Updates:
      return plan.ascent(ascent.value_and_grad(point)[1])

    if not selected.perturbs:
      gradient = jax.tree.map(jnp.zeros_like, w)
    elif selected.ascent is None:
      gradient = clean
    else:
      gradient = gradient_at(w)
    inside, leaves = view.leaves.inside(gradient), view.leaves
    ours = {
      'axis_name': plan.axis_name,
      'is_synced': plan.is_synced,
      'ascent_grad_fn': lambda e: leaves.inside(gradient_at(leaves.move(w, e))),
      'loss_view': view.of_movable_leaves(),
    }
    epsilon, perturbation_state = perturbation.update(
      inside, state.perturbation, leaves.inside(w), **{**extra_args, **ours}
    )
    norm = tree_math.norm(inside)
    return Ascent(epsilon, perturbation_state, norm, selected.descent)

  def second_of(
    view: LossView, clean: optax.Updates, ascent: Ascent | None, times: float
  ) -> Second:
    """Takes the gradient at `w + times * epsilon`."""
    ascent = perturb(view, clean) if ascent is None else ascent
    point = view.leaves.move(w, ascent.epsilon)
    view = ascent.examples(point)
    if times != 1:
      point = view.leaves.move(w, ascent.epsilon, times)
    loss, gradient = view.value_and_grad(point)
    last = state.info.perturbed_loss
    if loss is None:
      loss = vary_like(last, gradient)
    # With its dtype: a Python number would make the state weakly typed.
    return Second(
      gradient,
      jnp.asarray(loss, last.dtype),
      optax.tree.cast_like(ascent.norm, state.info.ascent_norm),
    )

  def mean_over_parts(size: int, times: float) -> Second:
    """Perturbs every part of the batch by its own gradient; their mean."""

    def of_part(batch: Any) -> Second:
      part = view.on(batch)
      gradient = plan.ascent(part.value_and_grad(w)[1])
      second = second_of(part, gradient, None, times)
      weight = part.num_examples / view.num_examples
      return jax.tree.map(lambda x: weight * tree_math.widen(x), second)

    _ = view.num_examples  # checks the arguments
    return sum_over_chunks(of_part, view.batch, size)

  ascent_gradient = averaged if plan.is_synced else local
  # Statistics must include every step, skipped or not.
  has_statistics = bool(jax.tree.leaves(state.perturbation))
  advanced = perturb(view, ascent_gradient) if has_statistics else None

  def second_at(times: float) -> Second:
    if selection.micro_batch_size is None:
      found = second_of(view, ascent_gradient, advanced, times)
    else:
      found = mean_over_parts(selection.micro_batch_size, times)
    gradient = optax.tree.cast_like(found.gradient, local)
    return plan.perturbed(found._replace(gradient=gradient))

  def ascending() -> tuple[optax.Updates, jax.Array, jax.Array, Any]:
    second = second_at(1)
    at = lambda t: second.gradient if t == 1 else second_at(t).gradient
    clean = averaged if plan.by_descent else local
    direction, found = descent.on_ascent(clean, at, state.descent)
    # Inside the branch: one that returns its old state needs no select.
    valid = jnp.isfinite(second.norm)
    descent_state = accept(direction, found, state.descent, valid)
    found = plan.ascended((direction, second.norm, second.loss))
    # The results of both branches must vary over the same axes.
    return vary_like((*found, descent_state), averaged)

  def skipping() -> tuple[optax.Updates, jax.Array, jax.Array, Any]:
    direction, found = descent.on_skip(averaged, state.descent)
    descent_state = accept(direction, found, state.descent)
    last = (state.info.ascent_norm, state.info.perturbed_loss)
    return vary_like((direction, *last, descent_state), averaged)

  taken = decided if ascend is None else ascend
  *found, descent_state = control_flow.cond(taken, ascending, skipping)
  direction, norm, loss = plan.output(tuple(found))
  return direction, info.advance(
    state._replace(
      perturbation=state.perturbation if advanced is None else advanced.state,
      policy=policy_state,
      descent=descent_state,
    ),
    norm,
    loss,
    ascended=taken,
    decided=decided,
  )
