"""Lookbehind-SAM."""

import numpy as np
import optax
import pytest

import optax_sam
from tests.methods import checks
from tests.oracles import lookbehind
from tests.oracles.problems import NETWORK
from tests.oracles.step import of_length

RHO = checks.RHO

test_follows_the_rule = checks.follows(lookbehind.CASES)
test_follows_the_rule_with_a_mask = checks.follows_with_a_mask(
  lookbehind.CASES[1]
)
test_golden_values = checks.golden(
  optax_sam.lookbehind,
  lookbehind.lookbehind,
  ({}, (0.22552806, 0.01081065, 0.15878053, 0.62329244)),
)
ONE_STEP = {'steps': 1, 'alpha': 1.0}


@pytest.mark.usefixtures('float64')
def test_one_inner_step_with_alpha_1_is_sam():
  right = optax.chain(optax_sam.sam(RHO), NETWORK.base())
  checks.equal(optax_sam.lookbehind, {'rho': RHO, **ONE_STEP}, right)


@pytest.mark.usefixtures('float64')
def test_one_inner_step_with_alpha_1_and_radius_0_is_the_base():
  checks.equal(optax_sam.lookbehind, {'rho': 0.0, **ONE_STEP}, NETWORK.base())


@pytest.mark.usefixtures('float64')
def test_metrics_have_the_first_norm_and_the_last_loss():
  tx = optax_sam.lookbehind(NETWORK.base(), rho=0.3)
  params, batch = NETWORK.params(), NETWORK.batch(0)
  _, state = NETWORK.training_step(tx)(params, tx.init(params), batch)
  metrics = optax_sam.metrics(state)
  w = NETWORK.start
  g = NETWORK.gradient(w, batch)
  point = w + of_length(0.3, g)
  point = point + of_length(0.3, NETWORK.gradient(point, batch))
  value = np.mean(NETWORK.losses(point, batch))
  assert metrics['ascent_norm'] == pytest.approx(np.linalg.norm(g))
  assert metrics['perturbed_loss'] == pytest.approx(value)
  assert (metrics['step_count'], metrics['second_gradients']) == (1, 1)
