"""Properties of all measures: batches, diverged models, invalid arguments."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from optax_sam import sharpness
from tests.sharpness import problems

box = sharpness.epsilon_sharpness
# Measures with settings, and invalid arguments with messages.
MEASURES = {
  'sam_sharpness': (
    functools.partial(sharpness.sam_sharpness, rho=0.3, steps=5),
    {'rho': [-1.0, 'wide', float('nan')], 'restarts': [-1]},
  ),
  'adaptive_sharpness': (
    functools.partial(sharpness.adaptive_sharpness, rho=0.1),
    {'rho': [-1, 'wide'], 'p': [3], 'steps': [0]},
  ),
  'average_adaptive_sharpness': (
    functools.partial(sharpness.average_adaptive_sharpness, rho=0.1),
    {'rho': [-1], 'p': [3], 'draws': [0]},
  ),
  'epsilon_sharpness by l-bfgs-b': (
    functools.partial(box, epsilon=1e-2, optimizer='l-bfgs-b'),
    {'epsilon': [-1], 'iterations': [0], 'optimizer': ['adam']},
  ),
  'epsilon_sharpness by sign': (
    functools.partial(box, epsilon=1e-2, optimizer='sign'),
    {},
  ),
  'rounding_rise': (
    functools.partial(sharpness.rounding_rise, bits=3),
    {'bits': [1, 17, 4.0], 'per': ['row']},
  ),
  'top_eigenvalue': (
    functools.partial(sharpness.top_eigenvalue, tolerance=1e-5),
    {},
  ),
  'top_eigenvalues': (
    functools.partial(sharpness.top_eigenvalues, k=2, tolerance=1e-5),
    {'k': [0, 21], 'tolerance': [0], 'max_vectors': [3]},
  ),
  'top_eigenvalues of few vectors': (
    functools.partial(
      sharpness.top_eigenvalues, k=2, tolerance=1e-5, max_vectors=8
    ),
    {},
  ),
  'hessian_trace': (
    functools.partial(sharpness.hessian_trace, probes=2),
    {'probes': [0]},
  ),
  'spectral_density': (
    functools.partial(sharpness.spectral_density, steps=6, probes=2),
    {'steps': [21], 'probes': [0]},
  ),
}
each = pytest.mark.parametrize('name', MEASURES)


def first(found):
  """Returns the first array of a result."""
  return np.asarray(found[0] if isinstance(found, tuple) else found)


@each
def test_batches_are_weighted_by_their_rows(name):
  measure, _ = MEASURES[name]
  params, batch = problems.network()
  whole, apart = (
    first(measure(problems.network_loss, params, **data))
    for data in (
      {'args': (batch,)},
      {'batches': problems.unequal_batches(batch)},
    )
  )
  assert np.all(np.abs(whole) > 1e-4)
  np.testing.assert_allclose(apart, whole, rtol=1e-3, atol=1e-4)


@each
def test_the_sharpness_of_a_diverged_model_is_nan(name):
  measure, _ = MEASURES[name]
  found = first(measure(lambda x: jnp.sum(x**4), jnp.full(9, jnp.inf)))
  assert np.isnan(found).all()


@each
def test_invalid_arguments_raise(name):
  measure, bad = MEASURES[name]
  params, batch = problems.network()
  for argument, values in bad.items():
    for value in values:
      with pytest.raises(ValueError, match=rf'^{argument} must'):
        measure(
          problems.network_loss, params, args=(batch,), **{argument: value}
        )


@pytest.mark.parametrize(
  ('batches', 'message'),
  [
    (iter([jnp.ones(3)]), r'list\(\.\.\.\)'),
    ([], 'at least one'),
    ([jnp.float32(1)], r'^batches must hold .* shapes \[\(\)\]'),
    (jnp.ones(3), r'batches=\[batch\]'),
    ([()], r'^batches must hold .* shapes \[\]'),
  ],
)
def test_invalid_batches_raise(batches, message):
  with pytest.raises(ValueError, match=message):
    sharpness.sam_sharpness(
      lambda x, b: jnp.sum(x) + jnp.sum(b), jnp.ones(2), 1.0, batches=batches
    )


def test_the_rise_of_the_mean_is_not_the_mean_of_rises():
  params, batch = problems.network()
  batches = problems.unequal_batches(batch)

  def rise(**data):
    return sharpness.sam_sharpness(
      problems.network_loss, params, rho=0.3, steps=5, **data
    )

  alone = [rise(args=(one,)) for one in batches]
  rows = [len(one['labels']) for one in batches]
  apart = rise(batches=batches, per_batch=True)
  assert apart == pytest.approx(np.average(alone, weights=rows), rel=1e-4)
  assert apart > 1.02 * rise(batches=batches)
  with pytest.raises(ValueError, match='per_batch=True needs batches'):
    rise(per_batch=True)


def test_other_arguments_do_not_recompile():
  traces = []

  def value_fn(params, scale):
    traces.append(scale)
    return scale * jnp.sum(params**2)

  found, counts = [], []
  for scale in (jnp.array(1.0), jnp.array(3.0)):
    found.append(sharpness.top_eigenvalue(value_fn, jnp.ones(3), args=(scale,)))
    sharpness.sam_sharpness(value_fn, jnp.ones(3), 0.1, args=(scale,))
    counts.append(len(traces))
  assert found == pytest.approx([2.0, 6.0])
  assert counts[0] == counts[1]
