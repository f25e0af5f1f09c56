"""SWAD."""

import functools
import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies

import optax_sam
from tests.contracts import comparisons
from tests.oracles import swad


@functools.cache
def averaging(**settings):
  return optax_sam.swad(**settings)


def run(functions, segments, losses):
  """Returns the parameters and the state after the last validation."""
  w = jnp.zeros(2)
  state = functions.init(w)
  for segment, loss in zip(segments, losses, strict=True):
    for iterate in segment:
      w = np.asarray(iterate, np.float32)
      state = functions.accumulate(state, w)
    state = functions.validate(state, np.float32(loss))
  return jnp.asarray(w), state


# Multiples of 1/4, so that ties occur and numbers are exact.
_LOSSES = strategies.lists(
  strategies.one_of(
    strategies.integers(0, 12).map(lambda n: n / 4), strategies.just(math.nan)
  ),
  min_size=1,
  max_size=16,
)


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(
  losses=_LOSSES,
  setting=strategies.sampled_from(
    [(3, 6, 0.25), (3, 2, 0.25), (1, 1, 0.0), (2, 1, 0.0), (4, 1, 0.5)]
  ),
  seed=strategies.integers(0, 2**32 - 1),
)
# The window ends before convergence is detected; later losses don't count.
@hypothesis.example(losses=[1.0, 3.0, 1.0, 1.0], setting=(4, 1, 0.5), seed=0)
def test_equals_the_rule(losses, setting, seed):
  random = np.random.default_rng(seed)
  sizes = random.integers(1, 4, size=len(losses))
  segments = [random.normal(size=(size, 2)) for size in sizes]
  names = ('n_converge', 'n_tolerance', 'tolerance')
  functions = averaging(**dict(zip(names, setting, strict=True)))
  w, state = run(functions, segments, losses)
  infinite = [math.inf if math.isnan(x) else x for x in losses]
  (first, last), mean = swad.swad(segments, infinite, *setting)
  assert (int(state.first_segment), int(state.last_segment)) == (first, last)
  np.testing.assert_allclose(
    functions.result(w, state), mean, rtol=1e-5, atol=1e-6
  )


_FALLING = [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0]
_FLAT = [2.0, 2.1, 2.2]


@pytest.mark.parametrize(
  ('losses', 'segments'),
  [
    pytest.param(_FALLING, (0, 0), id='never converged'),
    pytest.param([*_FALLING, *_FLAT], (8, 10), id='never ended'),
    pytest.param([*_FALLING, *_FLAT, *[5.0] * 5], (8, 10), id='about to end'),
    pytest.param(
      [*_FALLING, *_FLAT, *[5.0] * 5, 2.7, *[5.0] * 9, 1.0],
      (8, 16),
      id='a low loss starts the count anew',
    ),
    pytest.param([2.0, 2.0, 2.0], (1, 3), id='all equal'),
    pytest.param([2.0, 9.0, 2.0, *[9.0] * 9], (1, 3), id='a high one between'),
  ],
)
def test_the_average_covers_the_expected_segments(losses, segments):
  """With the defaults the threshold is at least 2.73."""
  functions = averaging()
  iterates = [[(k, -k)] for k in range(1, len(losses) + 1)]
  w, state = run(functions, iterates, losses)
  found = int(state.first_segment), int(state.last_segment)
  assert found == segments
  mean = sum(segments) / 2 or len(losses)
  np.testing.assert_allclose(functions.result(w, state), (mean, -mean))


def test_before_the_first_validation_there_is_no_average():
  functions = averaging()
  state = functions.accumulate(functions.init(jnp.zeros(2)), jnp.ones(2))
  w = jnp.array([3.0, 4.0])
  comparisons.assert_equal(functions.result(w, state), w)


def test_the_state_has_three_averages():
  state = averaging().init(jnp.zeros(2))
  averages = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (2,)]
  assert len(averages) == 3


def test_parameters_that_are_not_finite_floats_are_not_averaged():
  functions = averaging()
  params = {'w': jnp.ones(2, jnp.bfloat16), 'steps': jnp.asarray(7)}
  state = functions.init(params)
  for w in (1.0, jnp.nan, 2.0):
    now = {**params, 'w': jnp.full(2, w, jnp.bfloat16)}
    state = functions.accumulate(state, now)
  state = functions.validate(state, 1.0)
  found = functions.result(params, state)
  assert found['w'].dtype == jnp.bfloat16
  np.testing.assert_array_equal(found['w'], jnp.full(2, 1.5, jnp.bfloat16))
  assert int(found['steps']) == 7


@pytest.mark.parametrize(
  ('argument', 'bad'),
  [
    ('n_converge', 0),
    ('n_converge', 2.5),
    ('n_converge', None),
    ('n_tolerance', 0),
    ('n_tolerance', 1.5),
    ('tolerance', -0.1),
    ('tolerance', 'some'),
  ],
)
def test_invalid_arguments_raise(argument, bad):
  with pytest.raises(ValueError, match=f'^{argument} must be'):
    optax_sam.swad(**{argument: bad})
