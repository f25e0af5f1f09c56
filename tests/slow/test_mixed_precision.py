"""Mixed precision and gradient accumulation, combined."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training import dynamic_scale as dynamic_scale_lib

import optax_sam

pytestmark = pytest.mark.slow

METHODS = {
  'sam': lambda: optax_sam.sam(0.1),
  'friendly_sam': lambda: optax_sam.friendly_sam(0.1),
  'look_sam': lambda: optax_sam.look_sam(0.1, period=2),
  'ae_sam': lambda: optax_sam.ae_sam(0.1, total_steps=8),
}


def problem():
  x = jax.random.normal(jax.random.key(0), (16, 5))
  y = jnp.sin(jnp.sum(x, axis=1))
  params = {
    'kernel': 0.5 * jax.random.normal(jax.random.key(1), (5, 4)),
    'out': 0.5 * jax.random.normal(jax.random.key(2), (4,)),
  }
  return params, (x, y)


def loss(params, batch, dtype=jnp.float32):
  """Mean squared error, computed in a given dtype."""
  x, y = jax.tree.map(lambda leaf: leaf.astype(dtype), batch)
  params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
  error = jnp.tanh(x @ params['kernel']) @ params['out'] - y
  return jnp.mean(jnp.square(error).astype(jnp.float32))


def train(name, value_fn=None, grad_fn=None):
  """Trains for six steps, with a loss or with its gradient."""
  params, _ = problem()
  tx = optax.chain(METHODS[name](), optax.sgd(0.1, momentum=0.9))
  given = {'grad_fn': grad_fn} if grad_fn else {'value_fn': value_fn}
  grad_fn = grad_fn or jax.grad(value_fn)

  @jax.jit
  def step(params, state):
    updates, state = tx.update(grad_fn(params), state, params, **given)
    return optax.apply_updates(params, updates), state

  state = tx.init(params)
  for _ in range(6):
    params, state = step(params, state)
  return params, state


def assert_near(found, expected, tolerance):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=tolerance),
    found,
    expected,
  )


@pytest.mark.parametrize('name', METHODS)
def test_bfloat16_compute_with_float32_parameters_is_close_to_float32(name):
  _, batch = problem()
  found = train(name, lambda p: loss(p, batch, jnp.bfloat16))
  assert all(leaf.dtype != jnp.bfloat16 for leaf in jax.tree.leaves(found))
  assert_near(found[0], train(name, lambda p: loss(p, batch))[0], 0.03)


@pytest.mark.parametrize('name', METHODS)
def test_float16_with_a_dynamic_scale_in_both_passes_is_close_to_float32(name):
  """Both passes use the same scale.

  The first scales overflow on purpose. Those steps must change nothing, and
  training must continue as if they had not happened.
  """
  params, batch = problem()
  half_loss = lambda p: loss(p, batch, jnp.float16)
  tx = optax.apply_if_finite(
    optax.chain(METHODS[name](), optax.sgd(0.1, momentum=0.9)),
    max_consecutive_errors=100,
  )

  @jax.jit
  def step(params, state, scale):
    new_scale, _, _, grads = scale.value_and_grad(half_loss)(params)
    updates, state = tx.update(
      grads,
      state,
      params,
      grad_fn=lambda p: scale.value_and_grad(half_loss)(p)[3],
    )
    return optax.apply_updates(params, updates), state, new_scale

  state = tx.init(params)
  scale = dynamic_scale_lib.DynamicScale(scale=jnp.float32(2.0**30))
  overflows, start = 0, float(loss(params, batch))
  for _ in range(60):
    previous = params
    params, state, scale = step(params, state, scale)
    if not bool(state.last_finite):
      overflows += 1
      jax.tree.map(np.testing.assert_array_equal, params, previous)
  assert 3 < overflows < 40
  assert float(loss(params, batch)) < start
  assert all(
    np.isfinite(leaf).all()
    for leaf in jax.tree.leaves((params, state))
    if jnp.issubdtype(leaf.dtype, jnp.floating)
  )


@pytest.mark.parametrize('name', METHODS)
def test_accumulation_inside_grad_fn_equals_the_full_batch(name):
  """Micro-batches are processed sequentially at one point."""
  _, batch = problem()
  parts = jax.tree.map(lambda x: x.reshape(4, 4, *x.shape[1:]), batch)

  def grad_fn(params):
    def add(total, part):
      return jax.tree.map(jnp.add, total, jax.grad(loss)(params, part)), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    total, _ = jax.lax.scan(add, zeros, parts)
    return jax.tree.map(lambda g: g / 4, total)

  found, _ = train(name, grad_fn=grad_fn)
  assert_near(found, train(name, lambda p: loss(p, batch))[0], 1e-5)
