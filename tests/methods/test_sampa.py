"""SAMPa."""

import numpy as np
import pytest

import optax_sam
from tests.methods import checks
from tests.oracles import sampa
from tests.oracles.problems import NETWORK

test_follows_the_rule = checks.follows(sampa.CASES)
test_follows_the_rule_with_a_mask = checks.follows_with_a_mask(sampa.CASES[1])
test_golden_values = checks.golden(
  optax_sam.sampa,
  sampa.sampa,
  ({}, (0.42526661, -0.31994004, -0.08293068, 0.97664846)),
)


@pytest.mark.usefixtures('float64')
def test_the_first_step_equals_that_of_the_base():
  """The first step has only its own batch, at `w`."""
  tx = optax_sam.sampa(NETWORK.base(), batch_like=NETWORK.batch(0))
  params, batch = NETWORK.params(), NETWORK.batch(0)
  found, state = NETWORK.training_step(tx)(params, tx.init(params), batch)
  expected = checks.run(NETWORK.base()).path[0]
  np.testing.assert_allclose(NETWORK.flat(found), expected, rtol=0, atol=1e-12)
  assert optax_sam.metrics(state)['ascent_norm'] == 0
