import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from optax_sam import descents, perturbations

CLEAN = {'w': jnp.linspace(0.5, 2.0, 16)}
PERTURBED = {'w': jnp.linspace(1.0, -2.0, 16)}


def rounded(x):
  return jnp.asarray(x, jnp.bfloat16)


def test_the_average_is_rounded_where_it_is_kept_and_nowhere_else():
  both = [
    perturbations.subtract_ema(0.9, 0.5, accumulator_dtype=dtype)
    for dtype in (None, 'bfloat16')
  ]
  states = [piece.init(CLEAN) for piece in both]
  wide, half = (
    piece.update(CLEAN, state)
    for piece, state in zip(both, states, strict=True)
  )
  np.testing.assert_array_equal(half[0]['w'], wide[0]['w'])
  np.testing.assert_array_equal(half[1].ema['w'], rounded(wide[1].ema['w']))


def test_the_reused_part_is_rounded_where_it_is_kept_and_nowhere_else():
  both = [
    descents.reuse_orthogonal(0.5, accumulator_dtype=dtype)
    for dtype in (None, jnp.bfloat16)
  ]
  (_, wide), (_, half) = (
    descent.on_ascent(CLEAN, PERTURBED, descent.init(CLEAN)) for descent in both
  )
  np.testing.assert_array_equal(
    half.direction['w'], rounded(wide.direction['w'])
  )
  assert half.ratio == wide.ratio
  # What is added is not rounded once more.
  direction, _ = both[1].on_skip(CLEAN, half)
  added = np.asarray(direction['w'] - CLEAN['w'])
  kept = np.asarray(half.direction['w'], np.float32)
  np.testing.assert_allclose(
    added, 0.5 * np.linalg.norm(CLEAN['w']) * kept, rtol=1e-4, atol=1e-6
  )


@pytest.mark.parametrize(
  'factory',
  [
    optax_sam.friendly_sam,
    optax_sam.look_sam,
    optax_sam.look_layer_sam,
    optax_sam.momentum_sam,
    optax_sam.async_sam,
    lambda **given: optax_sam.eigen_sam(key=0, **given),
    lambda **given: optax_sam.ae_look_sam(total_steps=10, **given),
  ],
)
def test_methods_keep_their_statistics_in_it(factory):
  state = factory(accumulator_dtype=jnp.bfloat16).init(CLEAN)
  like_params = [x for x in jax.tree.leaves(state) if jnp.shape(x) == (16,)]
  assert [leaf.dtype for leaf in like_params] == [jnp.bfloat16]


@pytest.mark.parametrize('value', ['int32', 'half a float', 16, jnp.bool_])
def test_no_other_dtype_is_taken(value):
  with pytest.raises(ValueError, match='accumulator_dtype must be None or'):
    optax_sam.friendly_sam(accumulator_dtype=value)
  with pytest.raises(ValueError, match='accumulator_dtype must be None or'):
    optax_sam.look_sam(accumulator_dtype=value)
