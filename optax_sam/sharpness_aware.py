"""The one transformation that composes the four choices of a method."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import descents as descents_lib
from optax_sam import devices, masking, numerics, validation
from optax_sam import policies as policies_lib
from optax_sam import selections as selections_lib
from optax_sam.objective import GradFn, Objective, PerExampleValueFn, ValueFn


class SharpnessAwareInfo(NamedTuple):
  """What the last steps did, for logs; equal on all devices.

  Attributes:
    ascended: whether the last step took the second gradient, a scalar bool.
    second_gradients: number of steps so far that took it, a scalar int32.
    ascent_norm: norm of the ascent gradient at the last step that took it, a
      scalar; 0 before the first.
    perturbed_loss: loss at the perturbed parameters at that step, a scalar; 0
      as long as it isn't known, as with a `grad_fn` that returns no loss.
  """

  ascended: jax.Array
  second_gradients: jax.Array
  ascent_norm: jax.Array
  perturbed_loss: jax.Array


class SharpnessAwareState(NamedTuple):
  """State of `sharpness_aware`.

  Attributes:
    count: number of steps so far, a scalar int32.
    perturbation: state of the perturbation.
    policy: state of the policy.
    descent: state of the descent.
    selection: state of the selection.
    info: what the last steps did.
  """

  count: jax.Array
  perturbation: Any
  policy: Any
  descent: Any
  selection: Any
  info: SharpnessAwareInfo


class _Step(NamedTuple):
  """What either branch of a step returns."""

  direction: optax.Updates
  descent: Any
  ascent_norm: jax.Array
  perturbed_loss: jax.Array


def sharpness_aware(
  perturbation: optax.GradientTransformation,
  *,
  policy: policies_lib.Policy | None = None,
  descent: descents_lib.Descent | None = None,
  selection: selections_lib.Selection | None = None,
  mask: masking.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Composes a sharpness-aware method from its four choices.

  With `g` the clean gradient that enters, at every step::

    epsilon = perturbation(ascent gradient)     # of the selection, masked
    if policy decides to ascend:
      gp = gradient at w + epsilon              # of the selection
      u  = descent.on_ascent(g, gp)
    else:
      u  = descent.on_skip(g)

  The result `u` goes on to the rest of the chain, which applies it at `w`:
  the parameters are never left perturbed, and no copy of them is kept.

  A perturbation without state is computed only when the step ascends; one
  with state at every step, so that its statistics never miss one. Under
  `jax.jit` a policy branches inside the program, with `jax.lax.cond`; if
  `update` is called outside of it, in Python, so that a caller's own jitted
  `grad_fn` runs or doesn't. `policies.always` compiles no conditional.

  Args:
    perturbation: from the ascent gradient to epsilon, an ordinary gradient
      transformation or a chain of them; see `optax_sam.perturbations`.
    policy: whether a step takes the second gradient; by default every step
      does. See `optax_sam.policies`.
    descent: what goes on to the base optimizer; by default the perturbed
      gradient. See `optax_sam.descents`.
    selection: which examples feed the two gradients; by default all. See
      `optax_sam.selections`.
    mask: which leaves may be perturbed: a tree of bools that is a prefix of
      the parameters, or a function from the parameters to one. Leaves that
      are left out don't enter the norm, and are updated like all others.
    axis_name: axis of `jax.pmap` or `jax.shard_map` whose devices hold
      different parts of the batch. Gradients come in local, the direction
      goes out averaged.
    sync_ascent: whether the ascent gradient is averaged over that axis first.
      Otherwise each device perturbs by its own: m-sharpness, at no further
      communication.

  Returns:
    A transformation whose `update` takes, beside the usual arguments,
    `value_fn` (from the parameters to the scalar loss of the batch), or
    `grad_fn` (to its gradient, or to (loss, gradient)), or
    `per_example_value_fn` and `batch` (to the losses of its examples).

  Raises:
    ValueError: if an argument is none of these, and in `update` if what the
      method needs was not passed.

  References:
    Foret, Kleiner, Mobahi, Neyshabur, `Sharpness-Aware Minimization for
    Efficiently Improving Generalization <https://arxiv.org/abs/2010.01412>`_,
    ICLR 2021.

  A combination that nobody published, noise perturbed in sharp places:

  >>> import jax, jax.numpy as jnp, optax, optax_sam
  >>> method = optax_sam.sharpness_aware(
  ...   optax.chain(
  ...     optax_sam.perturbations.subtract_ema(0.9),
  ...     optax_sam.perturbations.scale_to_radius(0.05),
  ...   ),
  ...   policy=optax_sam.policies.on_sharp_gradients(total_steps=100),
  ... )
  >>> tx = optax.chain(method, optax.sgd(0.1))
  >>> loss = lambda w: jnp.sum(w**4)
  >>> w = jnp.ones(4)
  >>> updates, state = tx.update(
  ...   jax.grad(loss)(w), tx.init(w), w, value_fn=loss
  ... )
  >>> bool(optax_sam.metrics(state)['ascended'])
  True
  """
  validation.check_choice('sync_ascent', sync_ascent, (True, False))
  if sync_ascent and axis_name is None:
    msg = (
      "sync_ascent=True needs axis_name, such as axis_name='data': without "
      'one there is nothing to average over.'
    )
    raise ValueError(msg)
  perturbation = optax.with_extra_args_support(perturbation)
  policy = policies_lib.always() if policy is None else policy
  descent = descents_lib.perturbed_gradient() if descent is None else descent
  selection = selections_lib.all_examples() if selection is None else selection

  def init(params: optax.Params) -> SharpnessAwareState:
    params = masking.keep(masking.float_leaves(params), params)
    allowed = masking.chosen_leaves(mask, params)
    scalar = jnp.zeros((), numerics.accumulator_dtype(params))
    return SharpnessAwareState(
      count=jnp.zeros((), jnp.int32),
      perturbation=perturbation.init(masking.keep(allowed, params)),
      policy=policy.init(params),
      descent=descent.init(params),
      selection=selection.init(params),
      info=SharpnessAwareInfo(
        ascended=jnp.zeros((), bool),
        second_gradients=jnp.zeros((), jnp.int32),
        ascent_norm=scalar,
        perturbed_loss=scalar,
      ),
    )

  def update(
    updates: Any,
    state: Any,
    params: Any = None,
    *,
    value_fn: ValueFn | None = None,
    grad_fn: GradFn | None = None,
    per_example_value_fn: PerExampleValueFn | None = None,
    batch: Any = None,
    **extra_args: Any,
  ) -> tuple[Any, SharpnessAwareState]:
    if params is None:
      msg = (
        'params must be given: write tx.update(grads, opt_state, params, '
        'value_fn=value_fn).'
      )
      raise ValueError(msg)
    # Everything below sees the floating-point leaves alone.
    floats = masking.float_leaves(params)
    objective = Objective(
      value_fn=value_fn,
      grad_fn=grad_fn,
      per_example_value_fn=per_example_value_fn,
      batch=batch,
      axis_name=axis_name,
      floats=floats,
      whole_params=params,
    )
    clean = masking.keep(floats, updates)
    params = masking.keep(floats, params)
    allowed = masking.chosen_leaves(mask, params)
    inside_params = masking.keep(allowed, params)
    devices.check_local(clean, axis_name)

    # What is stored, or decides, must be equal on all devices.
    synced = sync_ascent or bool(jax.tree.leaves(state.descent))
    reads_average = synced or policy.reads_gradient
    average = devices.average(clean, axis_name) if reads_average else clean
    sync_axis = axis_name if sync_ascent else None
    store_axis = None if sync_ascent else axis_name

    def perturb() -> tuple[Any, Any, jax.Array, Any]:
      selected = selection.select(
        objective, params, state.selection, state.count
      )

      def ascent_grad_fn(epsilon: optax.Updates) -> optax.Updates:
        _, gradient = selected.ascent.value_and_grad(move(epsilon))
        gradient = devices.average(gradient, sync_axis)
        return masking.keep(allowed, gradient)

      if selected.ascent is objective:
        ascent_gradient = average if sync_ascent else clean
      else:
        _, ascent_gradient = selected.ascent.value_and_grad(params)
        ascent_gradient = devices.average(ascent_gradient, sync_axis)
      ascent_gradient = masking.keep(allowed, ascent_gradient)
      epsilon, perturbation_state = perturbation.update(
        ascent_gradient,
        state.perturbation,
        inside_params,
        axis_name=store_axis,
        ascent_grad_fn=ascent_grad_fn,
        **extra_args,
      )
      norm = numerics.norm(ascent_gradient)
      return selected, epsilon, norm, perturbation_state

    def move(epsilon: optax.Updates) -> optax.Params:
      moved = numerics.add(inside_params, jax.lax.stop_gradient(epsilon))
      return masking.fill(allowed, moved, params)

    ascend, policy_state = policy.decide(average, state.policy)
    perturbation_state = state.perturbation
    perturbed = None
    if jax.tree.leaves(state.perturbation):
      perturbed = perturb()
      perturbation_state = perturbed[-1]

    def ascent_step() -> _Step:
      selected, epsilon, norm, _ = perturbed or perturb()
      point = move(epsilon)
      value, gradient = selected.descent(point).value_and_grad(point)
      if value is None:
        value = devices.as_local(state.info.perturbed_loss, axis_name)
      gradient = jax.tree.map(lambda x, g: x.astype(g.dtype), gradient, clean)
      scalars = (norm, value)
      if synced:
        gradient, scalars = devices.average((gradient, scalars), axis_name)
      direction, descent_state = descent.on_ascent(
        average if synced else clean, gradient, state.descent
      )
      if reads_average and not synced:
        direction, scalars = devices.average((direction, scalars), axis_name)
      return _Step(direction, descent_state, *_cast(scalars, state.info))

    def skip_step() -> _Step:
      direction, descent_state = descent.on_skip(average, state.descent)
      scalars = (state.info.ascent_norm, state.info.perturbed_loss)
      if not reads_average:
        scalars = devices.as_local(scalars, axis_name)
      return _Step(direction, descent_state, *scalars)

    if isinstance(ascend, jax.core.Tracer):
      step = jax.lax.cond(ascend, ascent_step, skip_step)
    else:
      step = ascent_step() if ascend else skip_step()
    if not reads_average:
      step = _average_step(step, axis_name)

    ascended = jnp.asarray(ascend)
    info = SharpnessAwareInfo(
      ascended=ascended,
      second_gradients=state.info.second_gradients + ascended.astype(jnp.int32),
      ascent_norm=step.ascent_norm,
      perturbed_loss=step.perturbed_loss,
    )
    new_state = SharpnessAwareState(
      count=numerics.increment(state.count),
      perturbation=perturbation_state,
      policy=policy_state,
      descent=step.descent,
      selection=state.selection,
      info=info,
    )
    return masking.fill(floats, step.direction, updates), new_state

  return optax.GradientTransformationExtraArgs(init, update)


def _cast(
  scalars: tuple[jax.Array, jax.Array], info: SharpnessAwareInfo
) -> tuple[jax.Array, ...]:
  return tuple(jnp.asarray(x, info.ascent_norm.dtype) for x in scalars)


def _average_step(step: _Step, axis_name: Any) -> _Step:
  # One collective for the direction and the scalars together.
  direction, norm, loss = devices.average(
    (step.direction, step.ascent_norm, step.perturbed_loss), axis_name
  )
  return _Step(direction, step.descent, norm, loss)
