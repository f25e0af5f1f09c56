"""The transformation that composes a method from four components."""

from typing import Any

import jax
import optax

from optax_sam import validation
from optax_sam.engine import devices, partition
from optax_sam.engine.descent import Descent, perturbed_gradient
from optax_sam.engine.loss_view import LossView
from optax_sam.engine.partition import Mask
from optax_sam.engine.policy import Policy, always
from optax_sam.engine.selection import Selection, all_examples
from optax_sam.engine.step import Choices, take_step
from optax_sam.engine.transformation import transformation


@validation.method()
def sharpness_aware(
  perturbation: optax.GradientTransformation,
  *,
  policy: Policy | None = None,
  descent: Descent | None = None,
  selection: Selection | None = None,
  mask: Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  r"""Composes a sharpness-aware method from four components.

  SAM is `scale_to_radius`, `always` and `perturbed_gradient`; AE-SAM has
  another policy, `on_sharp_gradients`; GSAM another combination rule,
  `surrogate_gap`.

  .. math::
    \begin{align*}
      \epsilon &= \text{perturbation}(\text{ascent gradient}) \\
      \tilde g &= \nabla L(w + \epsilon) \\
      u &= \text{combine}(g, \tilde g) \text{ at an ascent step} \\
      u &= \text{combine}(g) \text{ at a skipped step}
    \end{align*}

  :math:`g` is the incoming, unperturbed gradient; the ascent gradient, by
  default :math:`g`, and :math:`\tilde g` are over the selected examples. The
  rest of the chain receives the direction `u` and applies it at `w`: the
  parameters are perturbed only inside of `update`, and no copy of them is
  stored.

  A stateless perturbation is computed at ascent steps only. A perturbation with
  state is computed at every step, so that its statistics include all of them.
  Under `jax.jit` a policy branches by `jax.lax.cond`, outside of it in Python,
  so that a skipped step does not call a jitted `grad_fn`. `policies.always` has
  no conditional.

  Args:
    perturbation: from the ascent gradient to epsilon, a gradient transformation
      or a chain of them; see `optax_sam.perturbations`.
    policy: whether a step computes the perturbed gradient; by default all do.
      See `optax_sam.policies`.
    descent: combination rule, from the gradients to the direction; by default
      it is the perturbed gradient. See `optax_sam.descents`.
    selection: batch selection, which examples enter the two gradients; by
      default all. See `optax_sam.selections`.
    mask: which leaves may be perturbed: a tree of bools that is a prefix of
      the parameters, or a function from the parameters to one. Excluded leaves
      don't enter the norm, and are updated like all others. For frozen ones see
      `optax_sam.trainable`.
    axis_name: axis of `jax.pmap` or `jax.shard_map` whose devices have
      different parts of the batch, or a tuple of axes; () if the devices train
      independently. Incoming gradients are local, the direction is averaged.
      Inside such an axis, `update` raises an error without it.
    sync_ascent: whether the ascent gradient is averaged over that axis first.
      Otherwise each device perturbs by its own gradient (m-sharpness), without
      further communication.

  Returns:
    A transformation whose `update` also takes `value_fn` (from the parameters
    to the scalar loss of the batch), or `grad_fn` (to its gradient, or to
    (loss, gradient)), or `per_example_value_fn` and `batch` (to the per-example
    losses; `losses`, their values at `params`, saves a forward pass).
    `ascend=True` or `False` selects a branch whatever the policy decides, for
    functions that are compiled for one branch; the statistics of the policy are
    updated, and its decision is in the state.

  References:
    Foret, Kleiner, Mobahi, Neyshabur, `Sharpness-Aware Minimization for
    Efficiently Improving Generalization <https://arxiv.org/abs/2010.01412>`_,
    ICLR 2021.

  An unpublished combination, a perturbation by gradient noise at sharp steps:

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
  policy = always() if policy is None else policy
  descent = perturbed_gradient() if descent is None else descent
  selection = all_examples() if selection is None else selection
  choices = Choices(perturbation, policy, descent, selection)
  examples = (
    (optax.GradientTransformation, 'perturbations.scale_to_radius(0.05)'),
    (Policy, 'policies.every(5)'),
    (Descent, 'descents.mix(0.5)'),
    (Selection, 'selections.micro_batches(8)'),
  )
  for name, value, example in zip(
    Choices._fields, choices, examples, strict=True
  ):
    validation.check_component(name, value, *example)
  return compose(choices, mask, axis_name, sync_ascent)


def compose(
  choices: Choices, mask: Mask, axis_name: Any, sync_ascent: bool
) -> optax.GradientTransformationExtraArgs:
  """Builds the transformation of a method from its components."""
  validation.check_sync_ascent(sync_ascent, axis_name)
  perturbation = optax.with_extra_args_support(choices.perturbation)
  choices = choices._replace(perturbation=perturbation)
  _, policy, descent, selection = choices

  def init_choices(w: optax.Params, leaves: partition.Leaves) -> Any:
    return {
      'perturbation': perturbation.init(leaves.inside(w)),
      'policy': policy.init(w),
      'descent': descent.init(w),
      'selection': selection.init(w),
    }

  def step(
    view: LossView, local: Any, state: Any, ascend: Any, extra_args: Any
  ) -> Any:
    plan = devices.AveragingPlan(
      axis_name,
      is_synced=sync_ascent,
      by_policy=policy.reads_gradient,
      by_descent=sync_ascent or bool(jax.tree.leaves(state.descent)),
    )
    return take_step(choices, view, plan, local, state, ascend, extra_args)

  return transformation(
    init_choices,
    step,
    mask=mask,
    axis_name=axis_name,
    needs_examples=selection.needs_examples,
  )
