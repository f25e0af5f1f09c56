"""The one transformation that composes the four choices of a method."""

from typing import Any

import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine import partition
from optax_sam.engine.descent import Descent, perturbed_gradient
from optax_sam.engine.displacement import Displacement
from optax_sam.engine.info import SharpnessAwareInfo, SharpnessAwareState
from optax_sam.engine.loss_view import (
  GradFn,
  Objective,
  PerExampleValueFn,
  ValueFn,
)
from optax_sam.engine.policy import Policy, always
from optax_sam.engine.selection import Selection, all_examples
from optax_sam.engine.step import Choices, Step
from optax_sam.trees import tree_math


def sharpness_aware(
  perturbation: optax.GradientTransformation,
  *,
  policy: Policy | None = None,
  descent: Descent | None = None,
  selection: Selection | None = None,
  mask: partition.Mask = None,
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
      are left out don't enter the norm, and are updated like all others. With
      `optax.inject_hyperparams`, list a function in `static_args`.
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
    `per_example_value_fn` and `batch` (to the losses of its examples; with
    `losses`, those of the clean pass, they aren't computed again). A
    further `ascend=True` or `False` takes that branch whatever the policy
    decides, whose statistics go on and whose decision is in the state: for
    programs that are compiled for one branch each.

  Raises:
    ValueError: if an argument is none of these, in `init` if a leaf is no
      array, or complex and not left out by the mask, and in `update` if what
      the method needs was not passed.

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
  validation.check_sync_ascent(sync_ascent, axis_name)
  descent = perturbed_gradient() if descent is None else descent
  choices = Choices(
    Displacement(
      perturbation,
      mask,
      axis_name,
      sync_ascent,
      both_sides=descent.both_sides,
    ),
    always() if policy is None else policy,
    descent,
    all_examples() if selection is None else selection,
    axis_name,
    sync_ascent,
  )

  def init(params: optax.Params) -> SharpnessAwareState:
    partition.check_real(params, mask)
    params = partition.keep(partition.float_leaves(params), params)
    scalar = jnp.zeros((), tree_math.accumulator_dtype(params))
    return SharpnessAwareState(
      count=jnp.zeros((), jnp.int32),
      perturbation=choices.displacement.init(params),
      policy=choices.policy.init(params),
      descent=choices.descent.init(params),
      selection=choices.selection.init(params),
      info=SharpnessAwareInfo(
        ascended=jnp.zeros((), bool),
        decided=jnp.zeros((), bool),
        second_gradients=jnp.zeros((), jnp.int32),
        ascent_norm=scalar,
        # A buffer of its own: the same one can't be donated twice.
        perturbed_loss=jnp.zeros_like(scalar),
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
    losses: Any = None,
    ascend: bool | None = None,
    **extra_args: Any,
  ) -> tuple[Any, SharpnessAwareState]:
    if params is None:
      msg = (
        'params must be given: write tx.update(grads, opt_state, params, '
        'value_fn=value_fn).'
      )
      raise ValueError(msg)
    validation.check_choice('ascend', ascend, (None, True, False))
    floats = partition.float_leaves(params)
    step = Step(
      choices=choices,
      objective=Objective(
        value_fn=value_fn,
        grad_fn=grad_fn,
        per_example_value_fn=per_example_value_fn,
        batch=batch,
        clean_losses=losses,
        axis_name=axis_name,
        floats=floats,
        whole_params=params,
      ),
      clean=partition.keep(floats, updates),
      params=partition.keep(floats, params),
      state=state,
      forced=ascend,
      extra_args=extra_args,
    )
    direction, new_state = step.run()
    return partition.fill(floats, direction, updates), new_state

  return optax.GradientTransformationExtraArgs(init, update)
