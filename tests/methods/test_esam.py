"""ESAM."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from optax_sam import perturbations, selections
from tests.conformance.reference import Recording
from tests.methods import checks
from tests.oracles import esam

SAM = optax_sam.esam

test_follows_the_rule = checks.follows(esam.CASES)
test_is_sam = checks.is_sam(SAM, {'beta': 1.0, 'gamma': 1.0, 'key': 0})
test_losses_of_the_clean_pass = checks.losses_of_the_clean_pass(
  SAM, rho=0.5, gamma=1, beta=1.0, key=0
)


def test_rises_of_half_precision_losses_are_not_rounded():
  before = jnp.array([2.0**-8, 0.0], jnp.bfloat16)

  def losses(w, batch):
    before, rows = batch
    value = jnp.where(jnp.any(w != 0), jnp.bfloat16(100.5), before)
    change = rows @ (w - jax.lax.stop_gradient(w))
    return value + change.astype(jnp.bfloat16)

  found = checks.perturbed(
    SAM(beta=1.0, gamma=1, key=0),
    jnp.ones(2),
    jnp.zeros(2),
    per_example_value_fn=losses,
    batch=(before, jnp.eye(2)),
  )
  np.testing.assert_allclose(found, [0.0, 1.0])


@pytest.mark.usefixtures('float64')
def test_perturbs_whole_tensors_to_the_full_radius():
  """This includes the first recorded step, which selects every tensor."""
  recording = Recording('P1_esam_dydjw9')
  scale = perturbations.scale_to_radius(0.05 / 0.6)
  for t in range(recording.steps):
    kept = np.repeat(recording['esam_tensor_active'][t], [48, 8, 24, 3])
    gradient = recording.tree(recording['g'][t] * kept)
    epsilon, _ = scale.update(gradient, scale.init(gradient))
    np.testing.assert_allclose(
      recording.flat(epsilon), recording['eps'][t], rtol=0, atol=1e-6
    )
    np.testing.assert_allclose(
      np.linalg.norm(recording['eps'][t]), 0.05 / 0.6, rtol=2e-6
    )


@pytest.mark.usefixtures('float64')
def test_the_number_of_selected_examples_is_exact():
  """gamma=0.5 of 16 is 8 examples; the published program selects only 7."""
  recording = Recording('P1_esamb1_dydjw9')
  for t in range(recording.steps):
    before = recording['esam_losses_before'][t]
    rise = jnp.asarray(recording['esam_losses_after'][t] - before)
    ours = np.asarray(selections.largest(rise, 8))
    theirs = set(np.flatnonzero(recording['esam_selected'][t]).tolist())
    assert len(theirs) == 7
    assert theirs == set(ours[:7].tolist())
