"""Metrics in the state of an optimizer."""

import jax
import jax.numpy as jnp
import optax
import pytest

import optax_sam
from tests.contracts import training


def test_metrics_report_norm_loss_and_count_of_ascents():
  loss = lambda w: jnp.sum(jnp.square(w))
  tx, w = optax_sam.sam(0.5), jnp.array([3.0, 4.0])
  _, state = tx.update(jax.grad(loss)(w), tx.init(w), w, value_fn=loss)
  found = {key: float(x) for key, x in optax_sam.metrics(state).items()}
  assert found == pytest.approx(
    {
      'step_count': 1,
      'ascended': 1,
      'decided': 1,
      'second_gradients': 1,
      'ascent_norm': 10.0,
      'perturbed_loss': 5.5**2,
    }
  )


def test_metrics_of_two_methods_have_prefixes():
  methods = optax_sam.sam(), optax_sam.look_sam()
  found = optax_sam.metrics([tx.init(training.params()) for tx in methods])
  assert {'0/step_count', '1/step_count', '1/descent/ratio'} <= found.keys()


def test_metrics_without_a_method_raise():
  with pytest.raises(ValueError, match='opt_state must hold the state of a m'):
    optax_sam.metrics(optax.adam(0.1).init(training.params()))
