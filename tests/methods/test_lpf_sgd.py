"""LPF-SGD."""

import jax.numpy as jnp
import numpy as np

import optax_sam
from tests.methods import checks
from tests.oracles import lpf_sgd

ONE = {'micro_batches': 1, 'total_steps': 12, 'key': 0}

test_follows_the_rule = checks.follows(lpf_sgd.CASES)


def test_a_step_with_ascend_false_is_the_base_optimizer():
  tx, w = optax_sam.lpf_sgd(**ONE), jnp.array([3.0, 4.0])
  u, after = tx.update(2 * w, tx.init(w), w, grad_fn=lambda p: p, ascend=False)
  np.testing.assert_array_equal(u, 2 * w)
  assert int(optax_sam.metrics(after)['step_count']) == 1
