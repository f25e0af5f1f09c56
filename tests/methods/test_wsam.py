"""WSAM, as one gradient and decoupled."""

import optax
import pytest

import optax_sam
from tests.methods import checks
from tests.oracles import wsam
from tests.oracles.problems import NETWORK

RHO = checks.RHO

test_follows_the_rule = checks.follows(wsam.CASES)
test_golden_values = checks.golden(
  optax_sam.wsam,
  wsam.wsam,
  ({}, (0.29744512, -0.11104458, 0.08851943, 0.76174167)),
)
test_golden_values_around_a_base = checks.golden(
  optax_sam.wsam_decoupled,
  wsam.wsam_decoupled,
  (
    {'learning_rate': 0.05},
    (0.36049717, -0.20930995, 0.01276202, 0.82551560),
  ),
)
test_is_base = checks.is_base(optax_sam.wsam, {'rho': 0.0}, {'gamma': 0.0})
test_is_sam = checks.is_sam(optax_sam.wsam, {'gamma': 0.5})
test_factor_on_the_loss = checks.factor_on_the_loss(
  optax_sam.wsam, changes_epsilon=False
)


@pytest.mark.usefixtures('float64')
def test_is_the_gradient_norm_penalty():
  method = optax_sam.gradient_norm_penalty(RHO, alpha=0.4 / 0.6)
  right = optax.chain(method, NETWORK.base())
  checks.equal(optax_sam.wsam, {'rho': RHO, 'gamma': 0.4}, right)


@pytest.mark.usefixtures('float64')
def test_decoupled_is_wsam_under_plain_sgd():
  decoupled = lambda: optax_sam.wsam_decoupled(
    optax.sgd(0.05), rho=RHO, gamma=0.8, learning_rate=0.05
  )
  right = optax.chain(optax_sam.wsam(RHO, gamma=0.8), optax.sgd(0.05))
  checks.equal_optimizers(decoupled(), right)


@pytest.mark.usefixtures('float64')
def test_decoupled_without_weight_is_its_base():
  given = {'gamma': 0.0, 'learning_rate': NETWORK.rate}
  checks.equal(optax_sam.wsam_decoupled, given, NETWORK.base())
