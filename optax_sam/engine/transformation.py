"""Common parts of all methods: checks, leaves, devices, counters and metrics.

Methods that choose their own points, such as `frob_sam` or `momentum_sam`, use
this module without `sharpness_aware`.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine import devices, gradient, info, manual_axes, partition
from optax_sam.engine.extra_arguments import ARGUMENTS
from optax_sam.engine.loss_view import LossView
from optax_sam.engine.perturbation import RandomState
from optax_sam.engine.trainable import Trainable
from optax_sam.trees import array_types, control_flow, tree_math

State = TypeVar('State')

# From (the loss, the unperturbed gradient of this device, the state, the branch
# that the caller chose, further extra arguments) to (direction, next state).
Step = Callable[..., tuple[optax.Updates, info.SharpnessAwareState]]


def transformation(
  init_choices: Callable[[optax.Params, partition.Leaves], Mapping[str, Any]],
  step: Step,
  *,
  mask: partition.Mask = None,
  axis_name: Any = None,
  needs_examples: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Builds a method from one step on floating-point leaves.

  `init_choices` returns fields of the `SharpnessAwareState` of these leaves.
  `step` calls `accept` for its `descent`; the other fields are accepted here.
  """

  def init(params: optax.Params) -> info.SharpnessAwareState:
    leaves = partition.Leaves.of(params, mask)
    w = leaves.split(params)
    return info.first_state(w)._replace(**init_choices(w, leaves))

  def update(
    updates: Any,
    state: Any,
    params: Any,
    *,
    ascend: bool | None = None,
    **extra_args: Any,
  ) -> tuple[Any, info.SharpnessAwareState]:
    validation.check_choice('ascend', ascend, (None, True, False))
    view = LossView.open(
      params, updates, extra_args, mask=mask, axis_name=axis_name
    )
    # A missing argument must raise an error also at a skipped step.
    view.check_given(examples=needs_examples)
    local = view.leaves.split(updates)
    manual_axes.check(view, local, axis_name)
    given = {x: y for x, y in extra_args.items() if x not in ARGUMENTS}
    direction, after = step(view, local, state, ascend, given)
    # So that frozen leaves cost no gradient.
    is_all_used = bool(jax.tree.leaves(state.descent))
    used = direction if is_all_used else view.leaves.needed(direction)
    # If epsilon is 0 for such a norm, the perturbed gradient may be finite, and
    # would hide it. Storing the ascent gradient to return it would take memory.
    valid = jnp.isfinite(after.info.ascent_norm)
    # `step` accepts or rejects the state of this component.
    others, descent = after._replace(descent=state.descent), after.descent
    after = accept(used, others, state, valid)._replace(descent=descent)
    direction = tree_math.nan_unless(valid, direction)
    others = devices.average_numbers(updates, axis_name)
    return view.leaves.join_updates(direction, others), after

  return checked(init, update, info.SharpnessAwareState, mask=mask)


def with_draws(
  key: jax.Array | int,
  step: Callable[..., tuple[optax.Updates, info.SharpnessAwareState]],
  **how: Any,
) -> optax.GradientTransformationExtraArgs:
  """Builds a method from a step with random numbers.

  `step` gets the loss, the unperturbed gradient, the next state, the count of
  the step and the key of its draws. Arguments of `transformation` may follow.
  """

  def drawing(
    view: LossView, clean: Any, state: Any, ascend: Any, _: Any
  ) -> tuple[optax.Updates, info.SharpnessAwareState]:
    draws = state.perturbation
    state = state._replace(perturbation=draws.advance())
    if ascend is False:
      return skip(view, clean, state)
    step_key = jax.random.fold_in(draws.key, draws.step_count)
    return step(view, clean, state, draws.step_count, step_key)

  init_choices = lambda *_: {'perturbation': RandomState.of(key)}
  return transformation(init_choices, drawing, **how)


def checked(
  init: Callable[[optax.Params], Any],
  update: Callable[..., tuple[Any, Any]],
  kind: type,
  *,
  mask: partition.Mask = None,
) -> optax.GradientTransformationExtraArgs:
  """Builds a gradient transformation that checks its arguments.

  `update` gets None for leaves without a gradient, and a state of class `kind`
  without these leaves; the updates that it returns for them are dropped.
  """
  _check_perturbed(mask, kind)
  seen = []

  def checked_init(params: optax.Params) -> Any:
    partition.check_real(params, mask)
    return init(params)

  def checked_update(
    updates: Any, state: Any, params: Any = None, **extra_args: Any
  ) -> tuple[Any, Any]:
    if params is None:
      msg = (
        'params must be given: write tx.update(grads, opt_state, params, '
        'value_fn=value_fn).'
      )
      raise ValueError(msg)
    info.check_state(state, kind)
    partition.float_leaves(params)  # checks them
    if kind is info.SharpnessAwareState and not seen:
      info.check_components(state, jax.eval_shape(init, params))
      seen.append(True)
    given = gradient.gradient_like(updates, params)
    narrowed, widen = gradient.without_absent(given, state, params)
    found, new_state = update(given, narrowed, params, **extra_args)
    if given is not updates:  # None is returned where it came in
      none = lambda entry, below: None if entry is None else below
      found = jax.tree.map(none, updates, found, is_leaf=lambda x: x is None)
    return found, widen(new_state)

  return optax.GradientTransformationExtraArgs(checked_init, checked_update)


def _check_perturbed(mask: partition.Mask, kind: type) -> None:
  if not isinstance(mask, Trainable) or mask.perturbed is None:
    return
  if kind is not info.SharpnessAwareState:
    msg = (
      f'perturbed must be None in optax_sam.trainable for a method that wraps '
      f'the base optimizer, got {[*mask.perturbed]}: use a method that is '
      f'chained, such as optax_sam.sam.'
    )
    raise ValueError(msg)


def accept(
  direction: optax.Updates, after: State, before: State, valid: Any = True
) -> State:
  """Returns the state after a step, or the one before if it must be rejected.

  Wrappers such as `optax.apply_if_finite` reject a direction that isn't finite,
  so such a step must leave the state unchanged. Directions that aren't `valid`
  are made NaN.
  """
  if after is before:
    return before
  finite = tree_math.all_finite(direction) & valid
  pairs = zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True)
  scalars = [(new, old) for new, old in pairs if jnp.ndim(new) == 0]
  # Faster than a select for each of them. A branch would copy arrays.
  chosen = control_flow.cond(
    finite,
    lambda: [array_types.vary_like(new, old) for new, old in scalars],
    lambda: [array_types.vary_like(old, new) for new, old in scalars],
  )
  following = iter(chosen)
  array = lambda new, old: new if new is old else jnp.where(finite, new, old)
  choose = lambda *x: array(*x) if jnp.ndim(x[0]) else next(following)
  return jax.tree.map(choose, after, before)


def skip(
  view: LossView, local: optax.Updates, state: info.SharpnessAwareState
) -> tuple[optax.Updates, info.SharpnessAwareState]:
  """Takes the step of the base optimizer, for `ascend=False`."""
  last = state.info
  direction = devices.average(local, view.axis_name)
  return direction, info.advance(
    state, last.ascent_norm, last.perturbed_loss, ascended=False
  )
