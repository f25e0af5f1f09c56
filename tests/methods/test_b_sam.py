"""bSAM."""

import optax
import pytest

import optax_sam
from tests.methods import checks
from tests.oracles import b_sam

test_follows_the_rule = checks.follows(b_sam.CASES)
test_golden_values = checks.golden(
  optax_sam.b_sam,
  b_sam.b_sam,
  (
    {'learning_rate': 0.05, 'num_data': 50, 'micro_batches': 1, 'key': 0},
    (0.62957860, -0.69384530, -0.36530714, 1.82211653),
  ),
  draws=True,
)


@pytest.mark.usefixtures('float64')
def test_without_adaptation_is_sgd():
  tx = optax_sam.b_sam(
    0.05,
    rho=0.0,
    b1=0.0,
    damping=0.0,
    prior_precision=0.0,
    b2=1 - 1e-16,
    num_data=1e40,
    micro_batches=1,
    key=0,
  )
  checks.equal_optimizers(tx, optax.sgd(0.05))
