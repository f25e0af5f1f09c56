"""WSAM: weights the sharpness against the loss, coupled or decoupled."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine import devices, partition
from optax_sam.engine.descent import mix
from optax_sam.engine.gradient import of_present
from optax_sam.engine.perturbation import scale_to_radius
from optax_sam.engine.sharpness_aware import Choices, compose
from optax_sam.engine.transformation import accept, checked
from optax_sam.trees import tree_math


@validation.method()
def wsam(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  gamma: float = 0.9,
  mask: partition.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  r"""Weighted SAM (WSAM), coupled: weights the sharpness against the loss.

  .. math::
    \epsilon &= \rho\, g / (\|g\| + 10^{-12}), \quad g = \nabla L(w) \\
    \tilde g &= \nabla L(w + \epsilon) \\
    u &= g + \tfrac{\gamma}{1 - \gamma} (\tilde g - g)

  Args:
    rho: radius, at least 0, or a schedule of it by the step; 0.05 is SAM's.
    gamma: weight of the sharpness, in [0, 1); 0 is the base optimizer, 0.5 is
      SAM. The authors advise 0.8 to 0.95.
    mask, axis_name, sync_ascent: see `optax_sam.sharpness_aware`.

  Returns:
    A gradient transformation to place first in `optax.chain`, whose `update`
    needs `value_fn` or `grad_fn`; stateless. It costs 2 gradients.

  .. note:: The rule is that of the authors' code. `wsam_decoupled`, their
    default, adds the second term after the base optimizer. With SGD without
    momentum both are equal.

  References:
    Yue et al., `Sharpness-Aware Minimization Revisited: Weighted Sharpness as a
    Regularization Term <https://arxiv.org/abs/2305.15817>`_, KDD 2023.

  >>> import jax.numpy as jnp, optax_sam
  >>> tx, w = optax_sam.wsam(rho=0.5, gamma=0.75), jnp.array([3.0, 4.0])
  >>> u, _ = tx.update(w, tx.init(w), w, grad_fn=lambda w: w)
  >>> [round(x, 3) for x in u.tolist()]  # g + 3 * (gp - g)
  [3.9, 5.2]
  """
  validation.check_number('gamma', gamma, at_least=0, below=1)
  choices = Choices(scale_to_radius(rho), descent=mix(gamma / (1 - gamma)))
  return compose(choices, mask, axis_name, sync_ascent)


class WsamDecoupledState(NamedTuple):
  """State of `wsam_decoupled`: those of the method and of the optimizer."""

  ascent: Any
  base: optax.OptState


@validation.method()
def wsam_decoupled(
  base: optax.GradientTransformation,
  *,
  rho: optax.ScalarOrSchedule = 0.05,
  gamma: float = 0.9,
  learning_rate: optax.ScalarOrSchedule,
  mask: partition.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  r"""Weighted SAM (WSAM), decoupled: adds the sharpness after the optimizer.

  The sharpness does not affect the momentum or the preconditioning of the base
  optimizer, so this method wraps it. The rule is that of the authors' code.

  .. math::
    \epsilon &= \rho\, g / (\|g\| + 10^{-12}), \quad g = \nabla L(w) \\
    \tilde g &= \nabla L(w + \epsilon) \\
    u &= \text{base}(g) - \eta_t\, \tfrac{\gamma}{1 - \gamma} (\tilde g - g)

  Args:
    base: base optimizer, chained with its weight decay, clipping and so on.
    rho: radius, at least 0, or a schedule of it by the step; 0.05 is SAM's.
    gamma: weight of the sharpness, in [0, 1); see `wsam`.
    learning_rate: :math:`\eta_t`, at least 0, or a schedule of it by the step
      from 0; usually the learning rate of the base optimizer.
    mask, axis_name, sync_ascent: see `optax_sam.sharpness_aware`.

  Returns:
    An optimizer that includes the learning rate, whose `update` needs `params`,
    and `value_fn` or `grad_fn`. It costs 2 gradients.

  References:
    Yue et al., `Sharpness-Aware Minimization Revisited: Weighted Sharpness as a
    Regularization Term <https://arxiv.org/abs/2305.15817>`_, KDD 2023.

  >>> import jax.numpy as jnp, optax, optax_sam
  >>> sgd, w = optax.sgd(0.1), jnp.array([3.0, 4.0])
  >>> tx = optax_sam.wsam_decoupled(sgd, rho=0.5, learning_rate=0.1)
  >>> u, _ = tx.update(w, tx.init(w), w, grad_fn=lambda w: w)
  >>> [round(x, 3) for x in u.tolist()]  # -0.1 * (g + 9 * (gp - g))
  [-0.57, -0.76]
  """
  validation.check_number('gamma', gamma, at_least=0, below=1)
  validation.check_radius(learning_rate, 'learning_rate')
  validation.check_base(base)
  base, perturbation = of_present(base), scale_to_radius(rho)
  sam = compose(Choices(perturbation), mask, axis_name, sync_ascent)

  def init(params: optax.Params) -> WsamDecoupledState:
    return WsamDecoupledState(sam.init(params), base.init(params))

  def update(updates: Any, state: Any, params: Any, **extra: Any) -> Any:
    count = state.ascent.step_count
    rate = learning_rate(count) if callable(learning_rate) else learning_rate
    perturbed, ascent = sam.update(updates, state.ascent, params, **extra)
    clean = devices.average(updates, axis_name)
    steps, base_state = base.update(clean, state.base, params, **extra)

    def add(step: jax.Array, gp: jax.Array, g: jax.Array) -> jax.Array:
      wide = tree_math.widen(gp)
      weight = jnp.asarray(rate * gamma / (1 - gamma), wide.dtype)
      return step - (weight * (wide - g.astype(wide.dtype))).astype(step.dtype)

    leaves = partition.Leaves.of(params, mask, updates)
    whole = jax.tree.map(add, *map(leaves.split, (steps, perturbed, clean)))
    after = accept(whole, WsamDecoupledState(ascent, base_state), state)
    return leaves.join(whole, steps), after

  wrapped = checked(init, update, WsamDecoupledState, mask=mask)
  return wrapped._replace(init=init)  # `sam.init` checks the parameters
