"""Loss scaling of both passes in float16 equals handwritten SAM in float32."""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.dynamic_scale import DynamicScale

import optax_sam
from tests.contracts import comparisons

# Flax's own arithmetic promotes.
STRICT = False
RHO, RATE, DEVICES = 0.5, 0.3, 4


def params():
  numbers = np.sin(np.arange(1, 13), dtype=np.float32)
  return {
    'a': jnp.asarray(numbers[:8].reshape(4, 2)),
    'b': jnp.asarray(numbers[8:10]),
  }


def batch(step):
  numbers = np.cos(np.arange(96) * 1.3 + step).astype(np.float32)
  x, y = numbers[:64].reshape(16, 4), numbers[64:].reshape(16, 2)
  return {'x': jnp.asarray(x), 'y': jnp.asarray(y)}


def loss(p, batch, dtype=jnp.float32, size=1e-4):
  """A loss so small that its unscaled float16 gradients underflow."""
  p, batch = jax.tree.map(lambda x: jnp.asarray(x, dtype), (p, batch))
  hidden = jnp.tanh(batch['x'] @ p['a'] + p['b'])
  error = (hidden - batch['y']).astype(jnp.float32)
  return size * jnp.mean(jnp.square(error))


def half(p, batch):
  return loss(p, batch, jnp.float16)


def by_hand(steps, devices=1, rho=RHO):
  """Each device perturbs with its local gradient; SGD uses the mean."""
  w = params()
  gradient = jax.jit(jax.grad(loss))
  for t in range(steps):
    second = []
    for rows in np.split(np.arange(16), devices):
      part = jax.tree.map(lambda x, rows=rows: x[rows], batch(t))
      g = gradient(w, part)
      size = np.sqrt(sum(float(jnp.sum(x**2)) for x in jax.tree.leaves(g)))
      point = jax.tree.map(lambda x, e, s=size: x + rho * e / s, w, g)
      second.append(gradient(point, part))
    mean = jax.tree.map(lambda *x: sum(x) / devices, *second)
    # The loss is small, so the learning rate must be large.
    w = jax.tree.map(lambda x, g: x - RATE / 1e-4 * g, w, mean)
  return w


def optimizer(**given):
  return optax.chain(
    optax_sam.sam(RHO, **given),
    optax.apply_if_finite(optax.sgd(RATE / 1e-4), 9),
  )


def assert_near(found, expected):
  for x, y in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(x, y, rtol=0, atol=2e-3)


def constant_step(tx, scale, p, state, batch):

  def grad_fn(p):
    value, grads = jax.value_and_grad(lambda p: scale * half(p, batch))(p)
    return value / scale, jax.tree.map(lambda g: g / scale, grads)

  value, grads = grad_fn(p)
  updates, state = tx.update(grads, state, p, grad_fn=grad_fn)
  return optax.apply_updates(p, updates), state, value


def dynamic_step(tx, p, state, scale, batch):
  value_and_grad = scale.value_and_grad(lambda p: half(p, batch))
  after, _, _, grads = value_and_grad(p)
  updates, state = tx.update(
    grads, state, p, grad_fn=lambda p: value_and_grad(p)[2:]
  )
  finite = state[1].last_finite
  smaller = jnp.maximum(scale.scale * scale.backoff_factor, scale.minimum_scale)
  scale = after.replace(
    scale=jnp.where(finite, after.scale, smaller),
    fin_steps=jnp.where(finite, after.fin_steps, 0),
  )
  return optax.apply_updates(p, updates), state, scale


def test_a_constant_scale_gives_correct_steps():
  tx, p = optimizer(), params()
  state = tx.init(p)
  step = jax.jit(functools.partial(constant_step, tx, 2.0**15))
  for t in range(5):
    p, state, value = step(p, state, batch(t))
  assert_near(p, by_hand(5))
  for other in (params(), by_hand(5, rho=0.0)):
    moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), p, other)
    assert max(jax.tree.leaves(moved)) > 0.02
  metrics = optax_sam.metrics(state)
  np.testing.assert_allclose(value, metrics['perturbed_loss'], rtol=0.3)


def test_a_dynamic_scale_decreases_and_gives_correct_steps():
  """The scale starts so high that the first steps overflow."""
  tx, p, scale = optimizer(), params(), DynamicScale(scale=2.0**33)
  state = tx.init(p)
  step = jax.jit(functools.partial(dynamic_step, tx))
  rejected = 0
  while True:
    found = step(p, state, scale, batch(0))
    if found[1][1].last_finite:
      break
    rejected += 1
    assert_near(found[0], p)
    assert optax_sam.metrics(found[1])['step_count'] == 0
    p, state, scale = found
    assert scale.scale == 2.0 ** (33 - rejected)
  assert rejected > 1
  for t in range(5):
    p, state, scale = step(p, state, scale, batch(t))
  assert_near(p, by_hand(5))
  assert optax_sam.metrics(state)['step_count'] == 5


def test_a_dynamic_scale_detects_an_overflow_of_the_perturbed_pass():
  tx = optax.chain(optax_sam.sam(0.5), optax.apply_if_finite(optax.sgd(0.1), 9))
  w, scale = jnp.array([1.0, 2.0]), DynamicScale(scale=4.0)
  moved = lambda p: jnp.sum(jnp.abs(p - w)) > 0
  state = tx.init(w)
  value_and_grad = scale.value_and_grad(
    lambda p: jnp.sum(p**2) * jnp.where(moved(p), jnp.inf, 1.0)
  )
  after, finite, _, grads = value_and_grad(w)
  assert finite
  assert after.scale == 4.0
  _, state = tx.update(grads, state, w, grad_fn=lambda p: value_and_grad(p)[2:])
  assert not state[1].last_finite


@pytest.mark.parametrize('start', [2.0**15, 2.0**33])
def test_a_dynamic_scale_inside_pmap_is_equal_on_all_devices(start):
  """The input gradients are local."""
  tx = optimizer(axis_name='data')
  shared = (params(), tx.init(params()), DynamicScale(scale=start))
  step = jax.pmap(
    functools.partial(dynamic_step, tx), 'data', in_axes=(0, 0, 0, 0)
  )
  carry = jax.tree.map(lambda x: jnp.stack([jnp.asarray(x)] * DEVICES), shared)
  split = lambda x: x.reshape(DEVICES, -1, *x.shape[1:])
  taken = 0
  for _ in range(30):
    found = step(*carry, jax.tree.map(split, batch(taken)))
    for leaf in jax.tree.leaves(found):
      np.testing.assert_array_equal(leaf, np.stack([leaf[0]] * DEVICES))
    taken += int(found[1][1].last_finite[0])
    carry = found
    if taken == 5:
      break
  assert_near(jax.tree.map(lambda x: x[0], carry[0]), by_hand(5, DEVICES))


def test_a_scale_in_one_pass_only_lengthens_the_step():
  """The documentation warns of this undetectable mistake."""
  tx, w, g = optax_sam.sam(0.05), jnp.array([3.0, 4.0]), jnp.array([3.0, 4.0])
  value_fn = lambda w: 2.0**15 * jnp.sum(w**2) / 2
  u, _ = tx.update(g, tx.init(w), w, value_fn=value_fn)
  np.testing.assert_allclose(jnp.linalg.norm(u), 2.0**15 * 5.05, rtol=1e-5)


def test_the_steps_of_the_documentation_are_correct():
  page = pathlib.Path(__file__).parents[2] / 'docs' / 'precision.md'
  blocks = re.findall(r'```python\n(.*?)```', page.read_text(), re.DOTALL)
  page = {}
  start = {'w': jnp.ones((4, 2))}
  exec(blocks[0], page)
  found = page['train_step'](start, page['tx'].init(start), batch(0))
  exec(blocks[1], page)
  given = (start, page['tx'].init(start), DynamicScale(), batch(0))
  again = page['train_step'](*given)
  comparisons.assert_close(found[:2], again[:2], 1e-4)
  assert again[2].scale == 65536
  assert float(found[2]) == pytest.approx(float(again[3]), rel=1e-4)
  page |= {'method': optax_sam.sam(), 'base': optax.sgd(0.1)}
  page['wsam_decoupled'] = optax_sam.wsam_decoupled(
    optax.sgd(0.1), learning_rate=0.1
  )
  exec(blocks[2], page)
