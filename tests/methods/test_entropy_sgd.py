"""Entropy-SGD."""

import numpy as np
import optax
import pytest

import optax_sam
from tests.methods import checks
from tests.oracles import entropy_sgd, step
from tests.oracles.problems import NETWORK

test_follows_the_rule = checks.follows(entropy_sgd.CASES)


@pytest.mark.usefixtures('float64')
def test_the_solution_is_the_outer_iterate():
  case = entropy_sgd.CASES[1]
  run = checks.run(case.optimizer(NETWORK.base(), NETWORK.batch(0)))
  outer = optax_sam.outer_params(NETWORK.tree(run.path[-1]), run.state)
  x, *_ = step.train(case.rule, NETWORK).memory['walk']
  np.testing.assert_allclose(NETWORK.flat(outer), x, rtol=0, atol=1e-10)
  assert np.abs(x - run.path[-1]).max() > 1e-3


@pytest.mark.usefixtures('float64')
def test_one_inner_step_without_noise_is_nesterov_from_rest():
  tx = optax_sam.entropy_sgd(
    4.0,
    inner_steps=1,
    inner_learning_rate=0.05 / 1.9,
    gamma=0.0,
    noise=0.0,
    key=0,
  )
  checks.equal_optimizers(tx, optax.sgd(0.05))
