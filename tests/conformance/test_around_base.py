"""Methods that hold the base optimizer, or stand instead of it.

Golden values as of the other methods; transcriptions in NumPy from the texts
alone, over several steps, with everything that the golden values leave out;
and settings at which one method is another.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam.wrappers import bayes, entropy
from tests.conformance.test_golden_values import (
  START,
  as_tree,
  as_vector,
  assert_is,
  base,
  loss,
)

pytestmark = pytest.mark.usefixtures('float64')

ROWS, STEPS = 10, 7
X = np.sin(1.3 * np.arange(STEPS * ROWS * 5)).reshape(STEPS, ROWS, 5)
Y = np.cos(2.1 * np.arange(STEPS * ROWS)).reshape(STEPS, ROWS)
W = 0.5 * np.cos(np.arange(5.0))


def draw(number, like):
  """Entries that stand for normal ones: a number of the step and the part."""
  leaves, structure = jax.tree.flatten(like)
  found, start = [], 0
  for leaf in leaves:
    entries = np.arange(start, start + leaf.size, dtype=float)
    found.append(jnp.sin(7 * number + entries).reshape(leaf.shape))
    start += leaf.size
  return structure.unflatten(found)


def given_draws(monkeypatch):
  """Replaces keys by numbers: the step, and 100 for each part."""
  for module in (bayes, entropy):
    monkeypatch.setattr(module, 'draw_direction', draw)

  def fold_in(key, number):
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jnp.floating):
      return key + 100.0 * jnp.asarray(number).astype(float)
    return jnp.asarray(number).astype(float)

  monkeypatch.setattr(jax.random, 'fold_in', fold_in)


def three_steps(tx):
  @jax.jit
  def step(params, state, t):
    updates, state = tx.update(
      params,
      state,
      params,
      per_example_value_fn=lambda p, batch: loss(p, batch[0])[None],
      batch=t,
    )
    return optax.apply_updates(params, updates), state

  params = as_tree(START)
  state = tx.init(params)
  for t in range(3):
    params, state = step(params, state, jnp.array([float(t)]))
  return np.asarray(as_vector(params))


def test_three_steps_of_sampa():
  w = three_steps(optax_sam.sampa(base(), batch_like=jnp.zeros(1)))
  assert_is(w, (0.42526661, -0.31994004, -0.08293068, 0.97664846))


def test_three_steps_of_b_sam(monkeypatch):
  def in_order(number, like):
    del like
    return as_tree(jnp.sin(7 * number + np.arange(12.0)))

  given_draws(monkeypatch)
  monkeypatch.setattr(bayes, 'draw_direction', in_order)
  tx = optax_sam.b_sam(0.05, num_data=50, micro_batches=1, key=0)
  w = three_steps(tx)
  assert_is(w, (0.62957860, -0.69384530, -0.36530714, 1.82211653))


def tree(w):
  return {'a': jnp.asarray(w[:3]), 'norm': jnp.asarray(w[3:])}


def vector(params):
  return np.concatenate([params['a'], params['norm']])


def losses(params, batch):
  w = jnp.concatenate([params['a'], params['norm']])
  error = batch['x'] @ w - batch['y']
  return jnp.square(error) + 0.1 * jnp.sum(w**4)


def gradient(w, t, rows=slice(None)):
  x, y = X[t, rows], Y[t, rows]
  return 2 * (x @ w - y) @ x / len(y) + 0.4 * w**3


def run(tx, steps=STEPS):
  """Returns the parameters after every step, and the last state."""
  tx = optax.with_extra_args_support(tx)

  @jax.jit
  def step(params, state, batch):
    mean = lambda p: jnp.mean(losses(p, batch))
    updates, state = tx.update(
      jax.grad(mean)(params),
      state,
      params,
      per_example_value_fn=losses,
      batch=batch,
    )
    return optax.apply_updates(params, updates), state

  params, found = tree(W), []
  state = tx.init(params)
  for t in range(steps):
    batch = {'x': jnp.asarray(X[t]), 'y': jnp.asarray(Y[t])}
    params, state = step(params, state, batch)
    found.append(vector(params))
  return np.array(found), state


class Sgd:
  """Momentum with weight decay and a learning rate that falls by the step."""

  def __init__(self):
    self.trace, self.count = np.zeros(5), 0

  def update(self, g, w):
    self.trace = g + 0.02 * w + 0.9 * self.trace
    self.count += 1
    return -0.05 * 0.9 ** (self.count - 1) * self.trace

  def guess(self, g, w):
    return -0.05 * 0.9**self.count * (g + 0.02 * w + 0.9 * self.trace)


def falling():
  return optax.chain(
    optax.add_decayed_weights(0.02),
    optax.sgd(lambda t: rate(t) / 6, momentum=0.9),
  )


def radius(t):
  return 0.1 + 0.05 * jnp.asarray(t).astype(float)


def rate(t):
  return 0.3 * 0.9 ** jnp.asarray(t).astype(float)


def length_one(g):
  return g / (np.linalg.norm(g) + 1e-12)


def assert_same(found, expected):
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def lookbehind_by_hand(steps, alpha, kept):
  base, w, found = Sgd(), W, []
  for t in range(STEPS):
    fast, pert, h = w, w, gradient(w, t)
    for _ in range(steps):
      pert = pert + radius(t) * length_one(kept * h)
      h = gradient(pert, t)
      fast = fast + base.update(h, fast)
    w = w + alpha * (fast - w)
    found.append(w)
  return np.array(found)


@pytest.mark.parametrize('masked', [False, True])
def test_lookbehind_step_by_step(masked):
  mask = optax_sam.norm_layers_only if masked else None
  found, state = run(
    optax_sam.lookbehind(falling(), rho=radius, steps=3, alpha=0.7, mask=mask)
  )
  kept = np.array([0.0, 0, 0, 1, 1]) if masked else np.ones(5)
  assert_same(found, lookbehind_by_hand(3, 0.7, kept))
  assert state.base[1][1].count == 3 * STEPS


def test_lookbehind_tells_of_its_ascents():
  _, state = run(optax_sam.lookbehind(falling(), rho=0.3), steps=1)
  metrics = optax_sam.metrics(state)
  g = gradient(W, 0)
  pert = W + 0.3 * length_one(g)
  pert = pert + 0.3 * length_one(gradient(pert, 0))
  value = np.mean(np.square(X[0] @ pert - Y[0])) + 0.1 * np.sum(pert**4)
  assert metrics['ascent_norm'] == pytest.approx(np.linalg.norm(g))
  assert metrics['perturbed_loss'] == pytest.approx(value)
  assert (metrics['count'], metrics['second_gradients']) == (1, 1)


def sampa_by_hand(mix, kept):
  base, w, gy, found = Sgd(), W, np.zeros(5), []
  for t in range(STEPS):
    if t:
      behind = w + radius(t) * length_one(kept * gy)
      g1 = gradient(behind, t - 1)
      g2 = gradient(w + base.guess(gy, w), t)
    else:
      g1 = g2 = gradient(w, 0)
    gy = g2
    w = w + base.update((1 - mix) * g1 + mix * g2, w)
    found.append(w)
  return np.array(found)


@pytest.mark.parametrize('masked', [False, True])
def test_sampa_step_by_step(masked):
  mask = optax_sam.norm_layers_only if masked else None
  like = {'x': X[0], 'y': jax.ShapeDtypeStruct((ROWS,), float)}
  found, _ = run(
    optax_sam.sampa(falling(), rho=radius, mix=0.3, batch_like=like, mask=mask)
  )
  kept = np.array([0.0, 0, 0, 1, 1]) if masked else np.ones(5)
  assert_same(found, sampa_by_hand(0.3, kept))


def b_sam_by_hand(parts):
  w, m, s, found = W, np.zeros(5), np.full(5, 0.7), []
  decay = 3.0 / 50
  for t in range(STEPS):
    ascent, descent = np.zeros(5), np.zeros(5)
    for number, rows in enumerate(parts):
      share = len(rows) / ROWS
      noise = np.sin(7 * (t + 100 * number) + np.arange(5.0))
      g = gradient(w + noise / np.sqrt(50 * s), t, rows)
      ascent = ascent + share * np.abs(g)
      descent = descent + share * gradient(w + radius(t) * g / s, t, rows)
    m = 0.8 * m + 0.2 * (descent + decay * w)
    w = w - rate(t) * m / s
    s = 0.9 * s + 0.1 * (np.sqrt(s) * ascent + 0.2 + decay)
    found.append(w)
  return np.array(found)


@pytest.mark.parametrize('count', [1, 3, 20])
def test_b_sam_step_by_step(count, monkeypatch):
  given_draws(monkeypatch)
  tx = optax_sam.b_sam(
    rate,
    rho=radius,
    b1=0.8,
    b2=0.9,
    damping=0.2,
    prior_precision=3.0,
    initial_precision=0.7,
    micro_batches=count,
    num_data=50,
    key=0,
  )
  found, _ = run(tx)
  size = -(-ROWS // count)
  rows = np.arange(ROWS)
  parts = [rows[i : i + size] for i in range(0, ROWS, size)]
  assert_same(found, b_sam_by_hand(parts))


def entropy_by_hand():
  w = x = mu = W
  v, n, found = np.zeros(5), 1, []
  for t in range(STEPS):
    eta, noise = rate(t), np.sin(7 * t + np.arange(5.0))
    g = gradient(w, t)
    v = 0.9 * v + g
    d = g + 0.9 * v
    pull = 0.2 * 1.5**n * (x - w)
    w = w - eta * (d - pull + 0.03 * w) + np.sqrt(2 * eta) * 0.02 * noise
    mu = 0.75 * mu + 0.25 * w
    if t % 3 == 2:
      x = x - radius(t) * (x - mu)
      w = mu = x
      v, n = np.zeros(5), n + 1
    found.append(w)
  return np.array(found), x


def test_entropy_sgd_step_by_step(monkeypatch):
  given_draws(monkeypatch)
  tx = optax_sam.entropy_sgd(
    radius,
    inner_steps=3,
    inner_learning_rate=rate,
    gamma=0.2,
    scoping=0.5,
    noise=0.02,
    weight_decay=0.03,
    key=0,
  )
  found, state = run(tx)
  expected, x = entropy_by_hand()
  assert_same(found, expected)
  outer = optax_sam.outer_params(tree(found[-1]), state)
  assert_same(vector(outer), x)
  assert np.abs(x - found[-1]).max() > 1e-3


SAM = optax.chain(optax_sam.sam(0.3), falling())
LIKE = {'x': X[0], 'y': Y[0]}
PLAIN = optax.sgd(0.05)
EQUATIONS = {
  'lookbehind steps=1 alpha=1 is sam': (
    lambda: optax_sam.lookbehind(falling(), rho=0.3, steps=1, alpha=1.0),
    lambda: SAM,
  ),
  'lookbehind steps=1 alpha=1 rho=0 is its base': (
    lambda: optax_sam.lookbehind(falling(), rho=0.0, steps=1, alpha=1.0),
    falling,
  ),
  'entropy_sgd of one free step is nesterov from rest': (
    lambda: optax_sam.entropy_sgd(
      4.0,
      inner_steps=1,
      inner_learning_rate=0.05 / 1.9,
      gamma=0.0,
      noise=0.0,
      key=0,
    ),
    lambda: PLAIN,
  ),
  'b_sam without adaptation is sgd': (
    lambda: optax_sam.b_sam(
      0.05,
      rho=0.0,
      b1=0.0,
      damping=0.0,
      prior_precision=0.0,
      b2=1 - 1e-16,
      num_data=1e40,
      micro_batches=1,
      key=0,
    ),
    lambda: PLAIN,
  ),
}


@pytest.mark.parametrize('name', EQUATIONS)
def test_equation(name):
  left, right = (run(side())[0] for side in EQUATIONS[name])
  assert_same(left, right)


def test_sampa_ascends_a_step_late():
  """All that the first step knows is its own batch, at `w`."""
  found, state = run(optax_sam.sampa(falling(), batch_like=LIKE), steps=1)
  expected, _ = run(falling(), steps=1)
  assert_same(found, expected)
  assert optax_sam.metrics(state)['ascent_norm'] == 0
