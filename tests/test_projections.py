"""What is taken out of a gradient, against the same formulas in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from optax_sam import descents, perturbations

# One structure, so that every function is compiled once.
SHAPES = {'empty': (0,), 'matrix': (2, 3), 'one': (1,), 'scalar': ()}
SIZE = 8
ALPHA = 0.375
DECAY, SIGMA = 0.75, 0.5
EPS = float(np.finfo(np.float32).eps)
# Squares of these fit into float32, also of the smallest entries.
MAGNITUDES = st.sampled_from([2.0**-45, 2.0**-20, 1.0, 2.0**20, 2.0**45])
ENTRIES = st.one_of(
  st.sampled_from([0.0, 1.0, -1.0]),
  st.floats(-8, 8, width=32).map(lambda x: x if abs(x) > 1e-3 else 0.0),
)
VECTORS = st.builds(
  lambda vector, magnitude: vector * np.float32(magnitude),
  hnp.arrays(np.float32, SIZE, elements=ENTRIES),
  MAGNITUDES,
)
properties = settings(max_examples=60, deadline=None)


def tree_of(vector, dtype=jnp.float32):
  """Spreads a vector over leaves of all kinds."""
  leaves, start = {}, 0
  for name, shape in SHAPES.items():
    size = int(np.prod(shape))
    part = np.reshape(vector[start : start + size], shape)
    leaves[name] = jnp.asarray(part, dtype)
    start += size
  return leaves


def flat(tree):
  leaves = [np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)]
  return np.concatenate(leaves)


def length(vector):
  return np.linalg.norm(np.asarray(vector, np.float64))


# Squares of lengths below 1e-18 are lost in float32.
SLOPES = st.floats(-4, 4, width=32).filter(lambda x: not 0 < abs(x) < 1e-3)


def orthogonal_part(x, to):
  """Returns x without its part along another vector, and 0 as rounding."""
  x, to = np.asarray(x, np.float64), np.asarray(to, np.float64)
  if not to.any():
    return x
  part = x - (x @ to) / (to @ to) * to
  return part if length(part) > 8 * EPS * length(x) else np.zeros_like(x)


def assert_near(found, expected, *scales):
  """Equal up to the rounding of vectors of these lengths."""
  assert np.isfinite(found).all()
  tolerance = 64 * EPS * max(length(scale) for scale in scales)
  np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@functools.cache
def on_ascent(name):
  descent = {
    'surrogate_gap': descents.surrogate_gap(ALPHA),
    'mix': descents.mix(ALPHA),
    'mix with unit length': descents.mix(ALPHA, normalize_clean=True),
    'reuse_orthogonal': descents.reuse_orthogonal(ALPHA),
  }[name]
  return descent, jax.jit(descent.on_ascent)


def ascend(name, clean, perturbed):
  descent, step = on_ascent(name)
  return step(clean, perturbed, descent.init(clean))


@functools.cache
def on_skip(per_leaf):
  descent = descents.reuse_orthogonal(ALPHA, per_leaf=per_leaf)
  return jax.jit(descent.on_skip)


@properties
@given(VECTORS, VECTORS)
def test_surrogate_gap(g, gp):
  u, _ = ascend('surrogate_gap', tree_of(g), tree_of(gp))
  expected = gp.astype(np.float64)
  if gp.any():
    expected = expected - ALPHA * orthogonal_part(g, gp)
  assert_near(flat(u), expected, g, gp)


@properties
@given(VECTORS, VECTORS)
def test_mix(g, gp):
  tree, other = tree_of(g), tree_of(gp)
  u, _ = ascend('mix', tree, other)
  wide, wide_p = g.astype(np.float64), gp.astype(np.float64)
  assert_near(flat(u), (1 - ALPHA) * wide + ALPHA * wide_p, g, gp)
  u, _ = ascend('mix with unit length', tree, other)
  unit = wide / length(g) if g.any() else wide
  # The stabilizer of the norm counts for the shortest of vectors.
  shrunk = length(g) / (length(g) + 1e-12)
  expected = (1 - ALPHA) * unit * shrunk + ALPHA * wide_p
  assert_near(flat(u), expected, unit, gp)


@properties
@given(VECTORS, VECTORS)
def test_reused_part_is_orthogonal_and_completes_the_triangle(g, gp):
  u, state = ascend('reuse_orthogonal', tree_of(g), tree_of(gp))
  np.testing.assert_array_equal(flat(u), gp)
  size = float(state.ratio) * (length(g) if g.any() else 1)
  part = size * flat(state.direction).astype(np.float64)
  expected = orthogonal_part(gp, g)
  assert_near(part, expected, gp)
  if expected.any():
    np.testing.assert_allclose(length(flat(state.direction)), 1, rtol=1e-5)
  assert abs(part @ g) <= 64 * EPS * length(gp) * length(g)
  along = gp - part
  np.testing.assert_allclose(
    length(part) ** 2 + length(along) ** 2, length(gp) ** 2, rtol=64 * EPS
  )


@pytest.mark.parametrize('per_leaf', [False, True])
@properties
@given(VECTORS, VECTORS)
def test_reuse_adds_a_share_of_the_length(per_leaf, g, direction):
  parts = tree_of(np.arange(SIZE)) if per_leaf else {'all': np.arange(SIZE)}
  expected = g.astype(np.float64)
  kept = np.zeros(SIZE, np.float32)
  for leaf in parts.values():
    index = np.ravel(np.asarray(leaf, int))
    v = direction[index].astype(np.float64)
    if v.any():
      kept[index] = v / length(v)
      expected[index] += ALPHA * length(g[index]) / length(v) * v
  state = descents.ReuseOrthogonalState(tree_of(kept), jnp.float32(0))
  found, after = on_skip(per_leaf)(tree_of(g), state)
  assert_near(flat(found), expected, g)
  np.testing.assert_array_equal(flat(after.direction), kept)


@properties
@given(VECTORS, SLOPES)
def test_what_is_parallel_leaves_nothing(g, slope):
  """The rounding that remains would be a direction without meaning."""
  tree, other = tree_of(g), tree_of(np.float32(slope) * g)
  _, state = ascend('reuse_orthogonal', tree, other)
  np.testing.assert_array_equal(flat(state.direction), np.zeros(SIZE))
  u, _ = ascend('surrogate_gap', tree, other)
  np.testing.assert_array_equal(flat(u), flat(other))


@pytest.mark.parametrize('name', ['surrogate_gap', 'mix', 'reuse_orthogonal'])
@properties
@given(VECTORS, VECTORS, st.sampled_from([-(2.0**4), 2.0**-3, 2.0**4]))
def test_factors_on_both_gradients_are_factors_on_the_result(
  name, g, gp, factor
):
  """A power of two changes no rounding: equal to the last bit."""
  factor = np.float32(factor)
  plain, state = ascend(name, tree_of(g), tree_of(gp))
  scaled, other = ascend(name, tree_of(factor * g), tree_of(factor * gp))
  np.testing.assert_array_equal(flat(scaled), factor * flat(plain))
  if name == 'reuse_orthogonal':
    np.testing.assert_array_equal(
      flat(other.direction), np.sign(factor) * flat(state.direction)
    )


@functools.cache
def noise_of(order, decay=DECAY, sigma=SIGMA):
  piece = perturbations.subtract_ema(decay, sigma, order=order)
  return piece, jax.jit(lambda updates, state: piece.update(updates, state))


@pytest.mark.parametrize('order', ['paper', 'official'])
@properties
@given(hnp.arrays(np.float32, (4, SIZE), elements=ENTRIES), MAGNITUDES)
def test_noise_is_what_the_average_leaves(order, gradients, magnitude):
  piece, update = noise_of(order)
  gradients = gradients * np.float32(magnitude)
  state = piece.init(tree_of(gradients[0]))
  m = np.zeros(SIZE)
  for t, g in enumerate(gradients):
    found, state = update(tree_of(g), state)
    before, m = m, DECAY * m + (1 - DECAY) * g
    if order == 'official' and t == 0:
      m = g.astype(np.float64)
    d = g - SIGMA * (m if order == 'paper' else before)
    assert_near(flat(found), d, gradients)
    assert_near(flat(state.ema), m, gradients)


@pytest.mark.parametrize('order', ['paper', 'official'])
@properties
@given(VECTORS)
def test_noise_of_a_gradient_that_never_changes(order, g):
  piece, update = noise_of(order, decay=0.5, sigma=1.0)
  state, found = piece.init(tree_of(g)), []
  for _ in range(3):
    noise, state = update(tree_of(g), state)
    found.append(flat(noise))
  if order == 'official':
    np.testing.assert_array_equal(found, np.outer([1, 0, 0], g))
  else:
    assert_near(found, np.outer([0.5, 0.25, 0.125], g), g)


@pytest.mark.parametrize('magnitude', [1e-30, 1e30])
@pytest.mark.parametrize(
  'name', ['surrogate_gap', 'mix', 'mix with unit length', 'reuse_orthogonal']
)
def test_squares_that_no_float32_holds_make_no_nan(name, magnitude):
  g = np.float32(magnitude) * np.arange(-3.0, 5.0, dtype=np.float32)
  gp = g[::-1].copy()
  u, state = ascend(name, tree_of(g), tree_of(gp))
  assert np.isfinite(flat(u)).all()
  assert np.isfinite(flat((u, state))).all()


def test_parts_of_a_finite_gradient_too_long_to_measure_are_left_out():
  long, short = jnp.full(2, 1e30), jnp.array([1e10, 0.0])
  direction, _ = descents.surrogate_gap(ALPHA).on_ascent(long, short, ())
  np.testing.assert_array_equal(direction, short)
  reuse = descents.reuse_orthogonal(ALPHA)
  stored = descents.ReuseOrthogonalState(jnp.array([1.0, 0.0]), jnp.float32(1))
  direction, _ = reuse.on_skip(long, stored)
  np.testing.assert_array_equal(direction, long)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize(
  'name', ['surrogate_gap', 'mix', 'mix with unit length', 'reuse_orthogonal']
)
def test_directions_keep_their_dtype_and_sums_are_wide(name, dtype):
  clean = tree_of(np.linspace(-1, 1, SIZE), dtype)
  perturbed = tree_of(np.linspace(1, 3, SIZE) ** 2, dtype)
  u, state = ascend(name, clean, perturbed)
  assert {leaf.dtype for leaf in jax.tree.leaves(u)} == {jnp.dtype(dtype)}
  assert {leaf.dtype for leaf in jax.tree.leaves(state)} <= {
    jnp.dtype('float32')
  }
  g, gp = flat(clean), flat(perturbed)
  expected = {
    'surrogate_gap': gp - ALPHA * orthogonal_part(g, gp),
    'mix': (1 - ALPHA) * g + ALPHA * gp,
    'mix with unit length': (1 - ALPHA) * g / length(g) + ALPHA * gp,
    'reuse_orthogonal': gp,
  }[name]
  rounding = float(jnp.finfo(dtype).eps)
  np.testing.assert_allclose(flat(u), expected, rtol=rounding, atol=rounding)


@pytest.mark.usefixtures('float64')
def test_double_precision_stays_double():
  g, gp = np.sin(np.arange(8.0)), np.cos(np.arange(8.0) ** 2)
  clean, perturbed = tree_of(g, jnp.float64), tree_of(gp, jnp.float64)
  descent = descents.reuse_orthogonal(ALPHA)
  _, state = descent.on_ascent(clean, perturbed, descent.init(clean))
  part = orthogonal_part(gp, g)
  np.testing.assert_allclose(
    flat(state.direction), part / length(part), rtol=0, atol=1e-14
  )
  u, _ = descents.surrogate_gap(ALPHA).on_ascent(clean, perturbed, ())
  np.testing.assert_allclose(
    flat(u), gp - ALPHA * orthogonal_part(g, gp), rtol=0, atol=1e-14
  )


@pytest.mark.parametrize('shape', [(), (0,), (1,)])
def test_trees_of_a_single_leaf(shape):
  """A number has no direction beside its own: nothing is orthogonal."""
  clean, perturbed = jnp.full(shape, 3.0), jnp.full(shape, 7.0)
  u, _ = descents.surrogate_gap(ALPHA).on_ascent(clean, perturbed, ())
  np.testing.assert_array_equal(u, perturbed)
  descent = descents.reuse_orthogonal(ALPHA)
  _, state = descent.on_ascent(clean, perturbed, descent.init(clean))
  np.testing.assert_array_equal(state.direction, jnp.zeros(shape))
  found, _ = descent.on_skip(clean, state)
  np.testing.assert_array_equal(found, clean)
