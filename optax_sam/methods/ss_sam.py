"""SS-SAM: takes SAM's step at random."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine.perturbation import RandomState, scale_to_radius
from optax_sam.engine.policy import Policy
from optax_sam.engine.sharpness_aware import Choices, Mask, compose


class BernoulliState(RandomState):
  """State of `bernoulli`: `step_count` and the PRNG `key`."""


def bernoulli(
  probability: optax.ScalarOrSchedule, key: jax.Array | int
) -> Policy:
  """Takes an ascent step at random: see `optax_sam.ss_sam`.

  Values of a schedule are not checked: below 0 means never, above 1 always.
  """
  if not callable(probability):
    validation.check_number('probability', probability, at_least=0, at_most=1)
  validation.check_key(key)

  def decide(grads: Any, state: BernoulliState) -> tuple[jax.Array, Any]:
    count = state.step_count
    chance = probability(count) if callable(probability) else probability
    coin = jax.random.fold_in(state.key, count)
    ascend = jax.random.bernoulli(coin, jnp.asarray(chance, jnp.float32))
    return ascend, state.advance()

  return Policy(lambda _: BernoulliState.of(key), decide, reads_gradient=False)


@validation.method()
def ss_sam(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  probability: optax.ScalarOrSchedule = 0.5,
  key: jax.Array | int,
  mask: Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  r"""Stochastic scheduled SAM (SS-SAM): takes SAM's step at random.

  At step :math:`t` = 0, 1, ... a draw :math:`b` from Bernoulli(p(t)) with key
  `fold_in(key, t)` decides between SAM and the base optimizer.

  .. math:: u = b\, \nabla L(w + \epsilon) + (1 - b)\, \nabla L(w)

  Of the paper's schedules, piecewise is `lambda t: jnp.where(t < fraction * T,
  p, 1 - p)`; trigonometric, SAM early, is `lambda t: (1 + jnp.cos(jnp.pi * t /
  T)) / 2`; linear, unverified, is `optax.linear_schedule`.

  Args:
    rho: radius, at least 0, or a schedule of it by the step; 0.05 is SAM's.
    probability: p, in [0, 1], or a schedule of it. 0.5 is a quoted "propagation
      count 1.5" of the paper; the authors' example has 0.6.
    key: integer seed or typed key, the same on all devices; not dropout's.
    mask, axis_name, sync_ascent: see `optax_sam.sharpness_aware`.

  Returns:
    A gradient transformation to place first in `optax.chain`, whose `update`
    needs `value_fn` or `grad_fn`; state: the key. It costs 1 + p(t) gradients.

  .. note:: The authors' code draws on the host, with the same distribution.
    Their later G-RST, also unverified, mixes both gradients at ascent steps:
    combine `policies.bernoulli` and `descents.mix`; a weight of 1 /
    `probability` keeps SAM's strength.

  References:
    Zhao, Zhang, Hu, `SS-SAM: Stochastic Scheduled Sharpness-Aware Minimization
    for Efficiently Training Deep Neural Networks
    <https://arxiv.org/abs/2203.09962>`_, 2022; as RST, AAAI 2023.

  >>> import jax.numpy as jnp, optax_sam
  >>> early = lambda t: jnp.where(t < 1, 1.0, 0.0)
  >>> tx, w = optax_sam.ss_sam(0.5, probability=early, key=0), jnp.float32(1.0)
  >>> g = lambda w: w
  >>> u, state = tx.update(w, tx.init(w), w, grad_fn=g)
  >>> float(u), float(tx.update(w, state, w, grad_fn=g)[0])  # w + 0.5, then w
  (1.5, 1.0)
  """
  choices = Choices(scale_to_radius(rho), policy=bernoulli(probability, key))
  return compose(choices, mask, axis_name, sync_ascent)
