"""One step of a sharpness-aware method, from gradient to direction."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam.engine import devices
from optax_sam.engine.descent import Descent
from optax_sam.engine.displacement import Displaced, Displacement
from optax_sam.engine.info import SharpnessAwareInfo, SharpnessAwareState
from optax_sam.engine.loss_view import Objective
from optax_sam.engine.micro_batches import sum_over_chunks
from optax_sam.engine.policy import Policy
from optax_sam.engine.selection import Selected, Selection
from optax_sam.trees import tree_math


@dataclasses.dataclass(frozen=True)
class Choices:
  """The four choices of a method, and how it treats devices."""

  displacement: Displacement
  policy: Policy
  descent: Descent
  selection: Selection
  axis_name: Any
  sync_ascent: bool


class _Perturbed(NamedTuple):
  """Where the second gradient is taken, and of what."""

  displaced: Displaced
  selected: Selected


class _Second(NamedTuple):
  """The gradient at the perturbed parameters, and what belongs to it.

  A pair of gradients where the descent asks for both sides.
  """

  gradient: optax.Updates
  ascent_norm: jax.Array
  perturbed_loss: jax.Array


class _Outcome(NamedTuple):
  """What either branch of a step returns."""

  direction: optax.Updates
  descent: Any
  ascent_norm: jax.Array
  perturbed_loss: jax.Array


@dataclasses.dataclass(frozen=True)
class Step:
  """One call of `update`, on the floating-point leaves alone.

  Attributes:
    choices: what the method is made of.
    objective: what the training step gave to differentiate.
    clean: gradient that came in, local to a device.
    params: parameters, unperturbed.
    state: state before the step.
    forced: which branch the caller chose, None to follow the policy.
    extra_args: extra arguments that are none of ours.
  """

  choices: Choices
  objective: Objective
  clean: optax.Updates
  params: optax.Params
  state: SharpnessAwareState
  forced: bool | None
  extra_args: dict[str, Any]

  @functools.cached_property
  def stores_gradient(self) -> bool:
    """Whether the descent sees gradients averaged over the devices."""
    stores = bool(jax.tree.leaves(self.state.descent))
    return self.choices.sync_ascent or stores

  @functools.cached_property
  def needs_average(self) -> bool:
    """Whether the clean gradient is averaged before the branch."""
    return self.stores_gradient or self.choices.policy.reads_gradient

  @functools.cached_property
  def average(self) -> optax.Updates:
    """The clean gradient, averaged over the devices where that is needed."""
    if not self.needs_average:
      return self.clean
    return devices.average(self.clean, self.choices.axis_name)

  @property
  def sync_axis(self) -> Any:
    """The axis that an ascent gradient is averaged over, if any."""
    return self.choices.axis_name if self.choices.sync_ascent else None

  def run(self) -> tuple[optax.Updates, SharpnessAwareState]:
    """Takes the step; returns the direction and the new state."""
    choices, state = self.choices, self.state
    devices.check_local(self.clean, choices.axis_name)
    decided, policy_state = choices.policy.decide(self.average, state.policy)
    ascend = decided if self.forced is None else self.forced

    # Statistics must not miss a step, skipped or not.
    perturbation_state = state.perturbation
    perturbed = None
    if jax.tree.leaves(state.perturbation):
      perturbed = self.perturb()
      perturbation_state = perturbed.displaced.state

    def ascend_branch() -> _Outcome:
      return self.ascend(perturbed)

    if isinstance(ascend, jax.core.Tracer):
      outcome = jax.lax.cond(ascend, ascend_branch, self.skip)
    else:
      outcome = ascend_branch() if ascend else self.skip()
    if not self.needs_average:
      outcome = self._averaged(outcome)

    count, ascended, decided, taken = _advance(
      state.count, state.info.second_gradients, ascend, decided
    )
    info = SharpnessAwareInfo(
      ascended, decided, taken, outcome.ascent_norm, outcome.perturbed_loss
    )
    return outcome.direction, SharpnessAwareState(
      count=count,
      perturbation=perturbation_state,
      policy=policy_state,
      descent=outcome.descent,
      selection=state.selection,
      info=info,
    )

  def perturb(self) -> _Perturbed:
    """Computes the perturbation and the next state of its statistics."""
    selected = self.choices.selection.select(
      self.objective, self.params, self.state.selection, self.state.count
    )
    displaced = self.choices.displacement(
      self._ascent_gradient(selected.ascent),
      self.state.perturbation,
      self.params,
      gradient_at=lambda point: self._gradient_at(point, selected.ascent),
      objective=self.objective,
      extra_args=self.extra_args,
    )
    return _Perturbed(displaced, selected)

  def _ascent_gradient(self, ascent: Objective | None) -> optax.Updates:
    if ascent is not self.objective:
      return self._gradient_at(self.params, ascent)
    return self.average if self.choices.sync_ascent else self.clean

  def _gradient_at(
    self, point: optax.Params, ascent: Objective | None
  ) -> optax.Updates:
    """Returns an ascent gradient, averaged if it is to be."""
    if ascent is None:
      return jax.tree.map(jnp.zeros_like, self.params)
    _, gradient = ascent.value_and_grad(point)
    return devices.average(gradient, self.sync_axis)

  def second_gradient(self, perturbed: _Perturbed) -> _Second:
    """Takes the gradient at the perturbed parameters."""
    point, ascent_norm, _, opposite = perturbed.displaced
    objective = perturbed.selected.descent(point)
    value, gradient = objective.value_and_grad(point)
    if opposite is not None:
      gradient = (gradient, objective.value_and_grad(opposite)[1])
    info = self.state.info
    if value is None:
      value = devices.as_local(info.perturbed_loss, self.choices.axis_name)
    norm = tree_math.cast_like(ascent_norm, info.ascent_norm)
    # With its dtype: a Python number would make the state weakly typed.
    value = jnp.asarray(value, info.perturbed_loss.dtype)
    return _Second(gradient, norm, value)

  def second_gradient_by_parts(self, size: int) -> _Second:
    """Perturbs every part of the batch by its own gradient; their mean."""

    def of_part(batch: Any) -> _Second:
      objective = self.objective.on(batch)
      _, clean = objective.value_and_grad(self.params)
      part = dataclasses.replace(self, objective=objective, clean=clean)
      second = part.second_gradient(part.perturb())
      weight = objective.num_examples / self.objective.num_examples
      return jax.tree.map(lambda x: weight * tree_math.widen(x), second)

    _ = self.objective.num_examples  # says what is missing, if it is
    return sum_over_chunks(
      of_part, self.objective.batch, size, self.choices.axis_name
    )

  def ascend(self, perturbed: _Perturbed | None = None) -> _Outcome:
    """Takes the second gradient and descends with what it shows."""
    size = self.choices.selection.micro_batch_size
    if size is None:
      second = self.second_gradient(perturbed or self.perturb())
    else:
      second = self.second_gradient_by_parts(size)
    both_sides = self.choices.descent.both_sides
    dtypes = (self.clean, self.clean) if both_sides else self.clean
    gradient = tree_math.cast_like(second.gradient, dtypes)
    axis_name = self.choices.axis_name
    scalars = (second.ascent_norm, second.perturbed_loss)
    if self.stores_gradient:
      gradient, scalars = devices.average((gradient, scalars), axis_name)
    direction, descent_state = self.choices.descent.on_ascent(
      self.average if self.stores_gradient else self.clean,
      gradient,
      self.state.descent,
    )
    outcome = _Outcome(direction, descent_state, *scalars)
    averages_here = self.needs_average and not self.stores_gradient
    return self._averaged(outcome) if averages_here else outcome

  def skip(self) -> _Outcome:
    """Descends without a second gradient."""
    direction, descent_state = self.choices.descent.on_skip(
      self.average, self.state.descent
    )
    scalars = (self.state.info.ascent_norm, self.state.info.perturbed_loss)
    if not self.needs_average:
      scalars = devices.as_local(scalars, self.choices.axis_name)
    return _Outcome(direction, descent_state, *scalars)

  def _averaged(self, outcome: _Outcome) -> _Outcome:
    # One collective for the direction and the scalars together.
    direction, norm, loss = devices.average(
      (outcome.direction, outcome.ascent_norm, outcome.perturbed_loss),
      self.choices.axis_name,
    )
    return _Outcome(direction, outcome.descent, norm, loss)


@jax.jit
def _advance(
  count: jax.Array, taken: jax.Array, ascend: Any, decided: Any
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  ascended = jnp.asarray(ascend)
  taken = taken + ascended.astype(jnp.int32)
  # A buffer of its own: the same one can't be donated twice.
  decided = jnp.asarray(decided).copy()
  return tree_math.increment(count), ascended, decided, taken
