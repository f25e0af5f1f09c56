"""The accounting of a method: leaves, devices, counts and what a step reports.

`sharpness_aware` perturbs; this part does not. Methods that choose their own
points, such as `frob_sam` or `momentum_sam`, need only this part.
"""

from collections.abc import Callable, Mapping
from typing import Any

import optax

from optax_sam import validation
from optax_sam.engine import devices, info, manual_axes, partition
from optax_sam.engine.loss_view import ARGUMENTS, LossView

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
  needs_examples: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Builds a gradient transformation from one step on floating-point leaves.

  Args:
    init_choices: from the floating-point leaves, and from which of these may
      be perturbed, to fields of `SharpnessAwareState`.
    step: the step, which sees floating-point leaves only.
    mask: leaves that may be perturbed.
    axis_name: device axis to average over.
    needs_examples: whether the step needs the losses of single examples.

  Returns:
    A gradient transformation whose state is a `SharpnessAwareState`.
  """

  def init(params: optax.Params) -> info.SharpnessAwareState:
    partition.check_real(params, mask)
    leaves = partition.Leaves.of(params, mask)
    w = leaves.split(params)
    return info.first_state(w)._replace(**init_choices(w, leaves))

  def update(
    updates: Any,
    state: Any,
    params: Any = None,
    *,
    ascend: bool | None = None,
    **extra_args: Any,
  ) -> tuple[Any, info.SharpnessAwareState]:
    validation.check_choice('ascend', ascend, (None, True, False))
    view = LossView.open(params, extra_args, mask=mask, axis_name=axis_name)
    # Whatever the step decides: what is missing must not show up later.
    view.check_given(examples=needs_examples)
    local = view.leaves.split(updates)
    manual_axes.check(view, local, axis_name)
    others = {x: y for x, y in extra_args.items() if x not in ARGUMENTS}
    direction, state = step(view, local, state, ascend, others)
    return view.leaves.join(direction, updates), state

  return optax.GradientTransformationExtraArgs(init, update)


def skip(
  view: LossView, local: optax.Updates, state: info.SharpnessAwareState
) -> tuple[optax.Updates, info.SharpnessAwareState]:
  """Takes the base optimizer's step, as `ascend=False` asks for."""
  last = state.info
  direction = devices.average(local, view.axis_name)
  return direction, info.advance(
    state, last.ascent_norm, last.perturbed_loss, ascended=False
  )
