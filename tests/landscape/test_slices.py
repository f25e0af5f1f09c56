import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_sam import landscape
from tests.sharpness import problems


def test_filters_are_on_the_last_axis():
  random = np.random.default_rng(0)
  params, direction = (
    {
      'dense': jnp.asarray(random.normal(size=(5, 3)), jnp.float32),
      'conv': jnp.asarray(random.normal(size=(3, 3, 2, 4)), jnp.float32),
      'bias': jnp.ones(3),
      'scale': jnp.ones(()),
    }
    for _ in range(2)
  )
  found = landscape.filter_normalized(direction, params)
  for name in ('dense', 'conv'):
    for output in range(found[name].shape[-1]):
      one, before, weights = (
        np.asarray(tree[name][..., output]).ravel()
        for tree in (found, direction, params)
      )
      expected = before * np.linalg.norm(weights) / np.linalg.norm(before)
      np.testing.assert_allclose(one, expected, rtol=1e-5)
  assert not found['bias'].any()
  assert not found['scale'].any()


def test_solutions_have_the_same_gaussian_for_a_key():
  key = jax.random.key(3)
  one, other = (
    landscape.random_direction(scale * jnp.ones((6, 2)), key)
    for scale in (1.0, 4.0)
  )
  np.testing.assert_allclose(4 * one, other, rtol=1e-5)
  third = landscape.random_direction(jnp.ones((6, 2)), jax.random.key(4))
  assert not np.allclose(one, third)


def test_the_line_is_the_loss_along_the_direction():
  params, batch = problems.network()
  direction = landscape.random_direction(params, jax.random.key(0))
  found = landscape.line(
    problems.network_loss,
    params,
    direction,
    points=5,
    radius=0.5,
    batches=problems.unequal_batches(batch),
  )
  for position, loss in zip(found.positions, found.losses, strict=True):
    there = jax.tree.map(lambda w, d, a=position: w + a * d, params, direction)
    assert loss == pytest.approx(
      float(problems.network_loss(there, batch)), rel=1e-4
    )


def test_the_first_axis_of_the_plane_is_the_first_direction():
  ways = (jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]))
  found = landscape.plane(
    lambda w: w[0] ** 2 + 100 * w[1], jnp.zeros(2), ways, points=3, radius=2.0
  )
  expected = np.add.outer(found.positions**2, 100 * found.positions)
  np.testing.assert_allclose(found.losses, expected)


def test_the_path_runs_from_start_to_end_and_beyond():
  found = landscape.path(
    lambda w: w['a'] ** 2,
    {'a': jnp.array(1.0)},
    {'a': jnp.array(3.0)},
    beyond=0.5,
    points=5,
  )
  np.testing.assert_allclose(found.positions, [-0.5, 0, 0.5, 1, 1.5])
  np.testing.assert_allclose(found.losses, [0, 1, 4, 9, 16], atol=1e-6)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [({'radius': 0}, 'radius'), ({'points': 1}, 'points')],
)
def test_invalid_arguments_raise(changes, message):
  with pytest.raises(ValueError, match=message):
    landscape.line(jnp.sum, jnp.ones(2), jnp.ones(2), **changes)
  with pytest.raises(ValueError, match=message):
    landscape.plane(jnp.sum, jnp.ones(2), (jnp.ones(2),) * 2, **changes)
