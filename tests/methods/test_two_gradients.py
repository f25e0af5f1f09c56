"""How clean and perturbed gradients are combined, for gradients of any size.

Both are given: the perturbed one by a `grad_fn` that ignores its argument.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optax_sam
from tests.methods import checks
from tests.methods.vectors import (
  EPS,
  SIZE,
  VECTORS,
  assert_near,
  flat,
  length,
  orthogonal_part,
  properties,
  tree_of,
)

ALPHA = 0.375
METHODS = {
  'gsam': lambda: optax_sam.gsam(alpha=ALPHA),
  'gradient_norm_penalty': lambda: optax_sam.gradient_norm_penalty(alpha=ALPHA),
  'of unit length': lambda: optax_sam.gradient_norm_penalty(
    alpha=ALPHA, normalize_clean=True
  ),
  'look_sam': lambda: optax_sam.look_sam(alpha=ALPHA, period=2),
  'look_sam per_leaf': lambda: optax_sam.look_sam(
    alpha=ALPHA, period=2, per_leaf=True
  ),
}
every_method = pytest.mark.parametrize('name', list(METHODS)[:4])
# Squares of lengths below 1e-18 are lost in float32.
SLOPES = st.floats(-4, 4, width=32).filter(lambda x: not 0 < abs(x) < 1e-3)


@functools.cache
def _method(name):
  method = METHODS[name]()

  @jax.jit
  def update(g, gp, state):
    params = jax.tree.map(jnp.zeros_like, g)
    return method.update(g, state, params, grad_fn=lambda _: gp)

  return method, update


def combine(name, g, gp):
  """Returns what a first step makes of both, and the state after it."""
  method, update = _method(name)
  return update(g, gp, method.init(g))


def direction(state):
  return optax.tree_utils.tree_get(state, 'direction')


@properties
@given(VECTORS, VECTORS)
def test_gsam(g, gp):
  u, _ = combine('gsam', tree_of(g), tree_of(gp))
  expected = gp.astype(np.float64)
  if gp.any():
    expected = expected - ALPHA * orthogonal_part(g, gp)
  assert_near(flat(u), expected, g, gp)


@properties
@given(VECTORS, VECTORS)
def test_gradient_norm_penalty(g, gp):
  tree, other = tree_of(g), tree_of(gp)
  u, _ = combine('gradient_norm_penalty', tree, other)
  wide, wide_p = g.astype(np.float64), gp.astype(np.float64)
  assert_near(flat(u), (1 - ALPHA) * wide + ALPHA * wide_p, g, gp)
  u, _ = combine('of unit length', tree, other)
  unit = wide / length(g) if g.any() else wide
  # The stabilizer of the norm counts for the shortest of vectors.
  shrunk = length(g) / (length(g) + 1e-12)
  expected = (1 - ALPHA) * unit * shrunk + ALPHA * wide_p
  assert_near(flat(u), expected, unit, gp)


@properties
@given(VECTORS, VECTORS)
def test_part_of_look_sam_is_orthogonal_and_completes_the_triangle(g, gp):
  u, state = combine('look_sam', tree_of(g), tree_of(gp))
  np.testing.assert_array_equal(flat(u), gp)
  ratio = float(optax_sam.metrics(state)['descent/ratio'])
  size = ratio * (length(g) if g.any() else 1)
  part = size * flat(direction(state))
  expected = orthogonal_part(gp, g)
  assert_near(part, expected, gp)
  if expected.any():
    np.testing.assert_allclose(length(flat(direction(state))), 1, rtol=1e-5)
  assert abs(part @ g) <= 64 * EPS * length(gp) * length(g)
  along = gp - part
  np.testing.assert_allclose(
    length(part) ** 2 + length(along) ** 2, length(gp) ** 2, rtol=64 * EPS
  )


@pytest.mark.parametrize('name', ['look_sam', 'look_sam per_leaf'])
@properties
@given(VECTORS, VECTORS)
def test_look_sam_adds_a_share_of_the_length(name, g, reused):
  leaves = tree_of(np.arange(SIZE))
  parts = leaves if name == 'look_sam per_leaf' else {'all': np.arange(SIZE)}
  expected = g.astype(np.float64)
  kept = np.zeros(SIZE, np.float32)
  for leaf in parts.values():
    index = np.ravel(np.asarray(leaf, int))
    v = reused[index].astype(np.float64)
    if v.any():
      kept[index] = v / length(v)
      expected[index] += ALPHA * length(g[index]) / length(v) * v
  method, update = _method(name)
  state = checks.with_fields(
    method.init(leaves), direction=tree_of(kept), count=jnp.int32(1)
  )
  found, after = update(tree_of(g), tree_of(g), state)
  assert not optax_sam.metrics(after)['ascended']
  assert_near(flat(found), expected, g)
  np.testing.assert_array_equal(flat(direction(after)), kept)


@properties
@given(VECTORS, SLOPES)
def test_what_is_parallel_leaves_nothing(g, slope):
  """The rounding that remains would be a direction without meaning."""
  tree, other = tree_of(g), tree_of(np.float32(slope) * g)
  _, state = combine('look_sam', tree, other)
  np.testing.assert_array_equal(flat(direction(state)), np.zeros(SIZE))
  u, _ = combine('gsam', tree, other)
  np.testing.assert_array_equal(flat(u), flat(other))


@pytest.mark.parametrize('name', ['gsam', 'gradient_norm_penalty', 'look_sam'])
@properties
@given(VECTORS, VECTORS, st.sampled_from([-(2.0**4), 2.0**-3, 2.0**4]))
def test_factors_on_both_gradients_are_factors_on_the_result(
  name, g, gp, factor
):
  """A power of two changes no rounding: equal to the last bit."""
  factor = np.float32(factor)
  plain, state = combine(name, tree_of(g), tree_of(gp))
  scaled, other = combine(name, tree_of(factor * g), tree_of(factor * gp))
  np.testing.assert_array_equal(flat(scaled), factor * flat(plain))
  if name == 'look_sam':
    np.testing.assert_array_equal(
      flat(direction(other)), np.sign(factor) * flat(direction(state))
    )


@pytest.mark.parametrize('magnitude', [1e-30, 1e30])
@every_method
def test_squares_that_no_float32_holds_make_no_nan(name, magnitude):
  g = np.float32(magnitude) * np.arange(-3.0, 5.0, dtype=np.float32)
  u, state = combine(name, tree_of(g), tree_of(g[::-1].copy()))
  assert np.isfinite(flat(u)).all()
  if name == 'look_sam':
    assert np.isfinite(flat(direction(state))).all()


def test_parts_of_a_finite_gradient_too_long_to_measure_are_left_out():
  long, short = jnp.full(2, 1e30), jnp.array([1e10, 0.0])
  u, _ = combine('gsam', long, short)
  np.testing.assert_array_equal(u, short)
  method, update = _method('look_sam')
  state = checks.with_fields(
    method.init(long), direction=jnp.array([1.0, 0.0]), count=jnp.int32(1)
  )
  u, _ = update(long, short, state)
  np.testing.assert_array_equal(u, long)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16', 'float32', 'float64'])
@every_method
def test_directions_keep_their_dtype_and_sums_are_wide(name, dtype):
  with jax.enable_x64(dtype == 'float64'):
    clean = tree_of(np.linspace(-1, 1, SIZE), dtype)
    perturbed = tree_of(np.linspace(1, 3, SIZE) ** 2, dtype)
    u, state = combine(name, clean, perturbed)
    assert {leaf.dtype for leaf in jax.tree.leaves(u)} == {jnp.dtype(dtype)}
    g, gp = flat(clean), flat(perturbed)
    expected = {
      'gsam': gp - ALPHA * orthogonal_part(g, gp),
      'gradient_norm_penalty': (1 - ALPHA) * g + ALPHA * gp,
      'of unit length': (1 - ALPHA) * g / length(g) + ALPHA * gp,
      'look_sam': gp,
    }[name]
    # In float64, the stabilizer of a norm counts as well.
    rounding = max(float(jnp.finfo(dtype).eps), 1e-12)
    np.testing.assert_allclose(flat(u), expected, rtol=rounding, atol=rounding)
    if name == 'look_sam':
      wide = 1e-14 if dtype == 'float64' else 1e-6
      part = orthogonal_part(gp, g)
      np.testing.assert_allclose(
        flat(direction(state)), part / length(part), rtol=0, atol=wide
      )


@pytest.mark.parametrize('shape', [(), (0,), (1,)])
def test_trees_of_a_single_leaf(shape):
  """A number has no direction beside its own: nothing is orthogonal."""
  clean, perturbed = jnp.full(shape, 3.0), jnp.full(shape, 7.0)
  u, _ = combine('gsam', clean, perturbed)
  np.testing.assert_array_equal(u, perturbed)
  _, state = combine('look_sam', clean, perturbed)
  np.testing.assert_array_equal(direction(state), jnp.zeros(shape))
  found, _ = _method('look_sam')[1](clean, perturbed, state)
  np.testing.assert_array_equal(found, clean)
