"""m-SAM."""

import functools

import numpy as np
import pytest

import optax_sam
from tests.methods import checks
from tests.oracles import m_sam, sam, step
from tests.oracles.problems import NETWORK

test_follows_the_rule = checks.follows(m_sam.CASES)
test_is_sam = checks.is_sam(optax_sam.m_sam, {'micro_batch_size': 64})


@pytest.mark.parametrize('devices', [2, 8])
def test_sam_on_devices_equals_m_sam_on_their_examples(devices):
  """The perturbed groups have the same size."""
  rule = functools.partial(m_sam.m_sam, micro_batch_size=64 // devices)
  np.testing.assert_allclose(
    step.train(sam.sam, NETWORK, devices=devices).path,
    step.train(rule, NETWORK).path,
    rtol=0,
    atol=1e-12,
  )


@pytest.mark.usefixtures('float64')
def test_metrics_are_means_over_parts_including_padding():
  tx = optax_sam.m_sam(0.1, micro_batch_size=48)
  batch, params = NETWORK.batch(0), NETWORK.params()
  batch['weight'][48:] = 0
  _, state = NETWORK.training_step(tx)(params, tx.init(params), batch)
  part, w = {k: x[:48] for k, x in batch.items()}, NETWORK.start
  g = NETWORK.gradient(w, part)
  perturbed = NETWORK.losses(w + step.of_length(0.1, g), part)
  metrics = optax_sam.metrics(state)
  expected = 0.75 * np.linalg.norm(g), 0.75 * np.mean(perturbed)
  found = metrics['ascent_norm'], metrics['perturbed_loss']
  np.testing.assert_allclose(found, expected, rtol=1e-10)
