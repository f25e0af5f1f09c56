"""The accounting of a method: leaves, devices, counts and what a step reports.

`sharpness_aware` perturbs; this part does not. Methods that choose their own
points, such as `frob_sam` or `momentum_sam`, need only this part.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from optax_sam import validation
from optax_sam.engine import devices, gradient, info, partition
from optax_sam.engine.extra_arguments import ARGUMENTS
from optax_sam.engine.loss_view import LossView

# From (the loss, the clean gradient of this device, the state, the branch that
# the caller chose, further extra arguments) to (direction, next state).
Step = Callable[
  [
    LossView,
    optax.Updates,
    info.SharpnessAwareState,
    bool | None,
    Mapping[str, Any],
  ],
  tuple[optax.Updates, info.SharpnessAwareState],
]


def transformation(
  init_choices: Callable[[optax.Params, partition.Leaves], Mapping[str, Any]],
  step: Step,
  *,
  mask: partition.Mask = None,
  axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
  """Builds a gradient transformation from one step on floating-point leaves.

  Args:
    init_choices: from the floating-point leaves, and from which of these may
      be perturbed, to fields of `SharpnessAwareState`.
    step: the step, which sees floating-point leaves only.
    mask: leaves that may be perturbed.
    axis_name: device axis to average over.

  Returns:
    A gradient transformation whose state is a `SharpnessAwareState`.
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
    local = view.leaves.split(updates)
    devices.check_local(local, axis_name)
    others = {x: y for x, y in extra_args.items() if x not in ARGUMENTS}
    direction, state = step(view, local, state, ascend, others)
    if ascend is not False:
      view.check_given()  # also where the policy decided not to ascend
    return view.leaves.join(direction, updates), state

  return checked(init, update, info.SharpnessAwareState, mask=mask)


def checked(
  init: Callable[[optax.Params], Any],
  update: Callable[..., tuple[Any, Any]],
  kind: type,
  *,
  mask: partition.Mask = None,
) -> optax.GradientTransformationExtraArgs:
  """Builds a gradient transformation that checks what it is given.

  Args:
    init: from the parameters to the state.
    update: from (updates, state, params, **extra_args) to (updates, state);
      updates are None where a leaf has no gradient, the state has nothing of
      such leaves, and what is returned for them is dropped.
    kind: class of the state.
    mask: leaves that may be perturbed, so that they must be real.
  """

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
    partition.float_leaves(params)  # says what is wrong with them, if anything
    given = gradient.gradient_like(updates, params)
    narrowed, widen = gradient.without_absent(given, state, params)
    found, new_state = update(given, narrowed, params, **extra_args)
    if given is not updates:  # None goes on where it came in
      none = lambda entry, below: None if entry is None else below
      found = jax.tree.map(none, updates, found, is_leaf=lambda x: x is None)
    return found, widen(new_state)

  return optax.GradientTransformationExtraArgs(checked_init, checked_update)


def skip(
  view: LossView, local: optax.Updates, state: info.SharpnessAwareState
) -> tuple[optax.Updates, info.SharpnessAwareState]:
  """Takes the base optimizer's step, as `ascend=False` asks for."""
  last = state.info
  direction = devices.average(local, view.axis_name)
  return direction, info.advance(
    state, last.ascent_norm, last.perturbed_loss, ascended=False
  )
