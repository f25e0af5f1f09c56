"""Noise: LPF-SGD and Anti-PGD, against their rules in NumPy.

What a method draws is drawn here by the same keys; all else shares no code.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam.noise import AntiPgdState
from tests.contracts import comparisons, table, training

STEPS, EXAMPLES, KEY = 5, 10, 3
GAMMA, RATIO, TOTAL = 0.2, 4.0, 3
# Leaves in the order of JAX, of all numbers of axes.
SHAPES = {'bias': (3,), 'kernel': (2, 2, 3), 'offset': (), 'out': (3, 1)}


def start():
  return {
    name: 0.5 + np.sin(np.arange(np.prod(shape, dtype=int)) + i).reshape(shape)
    for i, (name, shape) in enumerate(SHAPES.items())
  }


def batch(step):
  numbers = np.cos(1.3 * np.arange(EXAMPLES * 5) + step).reshape(EXAMPLES, 5)
  return {'x': numbers[:, :4].reshape(EXAMPLES, 2, 2), 'y': numbers[:, 4]}


def losses(params, batch):
  hidden = jnp.einsum('bij,ijk->bk', batch['x'], params['kernel'])
  hidden = jnp.tanh(hidden + params['bias'][None])
  error = (hidden @ params['out'])[:, 0] + params['offset'] - batch['y']
  return jnp.square(error)


def gradient_by_hand(params, batch):
  """Returns the gradient of the mean loss."""
  x = batch['x'].reshape(-1, 4)
  hidden = np.tanh(x @ params['kernel'].reshape(4, 3) + params['bias'])
  error = (hidden @ params['out'])[:, 0] + params['offset'] - batch['y']
  at_error = 2 * error / len(error)
  before = np.outer(at_error, params['out'][:, 0]) * (1 - hidden**2)
  return {
    'bias': before.sum(axis=0),
    'kernel': (x.T @ before).reshape(2, 2, 3),
    'offset': at_error.sum(),
    'out': hidden.T @ at_error[:, None],
  }


def draw(key, *numbers):
  """Returns standard normal entries of every leaf."""
  for number in numbers:
    key = jax.random.fold_in(key, number)
  return {
    name: np.asarray(
      jax.random.normal(jax.random.fold_in(key, i), shape, np.float64)
    )
    for i, (name, shape) in enumerate(SHAPES.items())
  }


def smoothed_by_hand(params, batch, step, sizes):
  """Returns LPF-SGD's mean of gradients over parts of these sizes."""
  progress = min(step / TOTAL, 1)
  gamma = GAMMA * (1 + (RATIO - 1) * (1 - np.cos(np.pi * progress)) / 2)
  total = dict.fromkeys(SHAPES, 0.0)
  first = 0
  for part, size in enumerate(sizes):
    moved = {}
    for name, z in draw(jax.random.key(KEY), step, part).items():
      w = params[name]
      if w.ndim < 2:
        moved[name] = w + gamma * np.linalg.norm(w) * z
      else:
        filters = [
          w[..., k] + gamma * np.linalg.norm(w[..., k]) * z[..., k]
          for k in range(w.shape[-1])
        ]
        moved[name] = np.stack(filters, axis=-1)
    rows = {name: x[first : first + size] for name, x in batch.items()}
    for name, g in gradient_by_hand(moved, rows).items():
      total[name] = total[name] + size / EXAMPLES * g
    first += size
  return total


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize(
  ('micro_batches', 'sizes'),
  [
    (1, [10]),
    (2, [5, 5]),
    (4, [3, 3, 2, 2]),
    (6, [2, 2, 2, 2, 1, 1]),
    (16, [1] * 10),
  ],
)
def test_lpf_sgd_is_its_rule(micro_batches, sizes):
  tx = optax_sam.lpf_sgd(
    GAMMA,
    micro_batches=micro_batches,
    final_ratio=RATIO,
    total_steps=TOTAL,
    key=KEY,
  )

  @jax.jit
  def update(state, params, batch):
    grads = jax.grad(lambda p: jnp.mean(losses(p, batch)))(params)
    return tx.update(
      grads, state, params, per_example_value_fn=losses, batch=batch
    )

  params = start()
  state = tx.init(jax.tree.map(jnp.asarray, params))
  for step in range(STEPS):
    u, state = update(state, params, batch(step))
    expected = smoothed_by_hand(params, batch(step), step, sizes)
    for name in SHAPES:
      np.testing.assert_allclose(u[name], expected[name], rtol=1e-10)
    params = {name: w - 0.1 * expected[name] for name, w in params.items()}


def test_a_branch_that_the_caller_refuses():
  tx, w = table.METHODS['lpf_sgd'](), jnp.array([3.0, 4.0])
  u, after = tx.update(2 * w, tx.init(w), w, grad_fn=lambda p: p, ascend=False)
  np.testing.assert_array_equal(u, 2 * w)
  assert int(after.count) == 1


@functools.cache
def _anti_pgd():
  """Returns the paths of the parameters, with noise and without."""
  noisy = optax.chain(optax.sgd(0.1, 0.9), optax_sam.anti_pgd(0.05, key=KEY))
  params = jax.tree.map(jnp.asarray, start())

  def step(carry, t):
    params, state = carry
    given = jax.tree.map(lambda x: x[t], batches)
    grads = jax.grad(lambda p: jnp.mean(losses(p, given)))(params)
    updates, state = noisy.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    clean = optax_sam.without_noise(params, state)
    return (params, state), (params, clean)

  batches = jax.tree.map(
    lambda *x: jnp.stack(list(map(jnp.asarray, x))), *map(batch, range(STEPS))
  )
  run = jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(STEPS)))
  return run((params, noisy.init(params)))


@pytest.mark.usefixtures('float64')
def test_anti_pgd_is_its_rule():
  (_, (_, state)), (found, clean) = _anti_pgd()
  params, noise = start(), dict.fromkeys(SHAPES, 0.0)
  momentum = dict(noise)
  for t in range(STEPS):
    g = gradient_by_hand(params, batch(t))
    new = {
      name: 0.05 * z for name, z in draw(jax.random.key(KEY), t + 1).items()
    }
    for name in SHAPES:
      momentum[name] = g[name] + 0.9 * momentum[name]
      params[name] = params[name] - 0.1 * momentum[name]
      params[name] = params[name] + new[name] - noise[name]
      np.testing.assert_allclose(found[name][t], params[name], rtol=1e-10)
      np.testing.assert_allclose(
        clean[name][t], params[name] - new[name], rtol=1e-10
      )
    noise = new
  assert int(state.count) == STEPS


def _noise_after_steps(tx, sigmas=None):
  """Returns the noise in the parameters after each step, and the state."""
  zeros = jnp.zeros((4, 50))
  w, state, found = zeros, tx.init(zeros), []
  for t in range(6):
    if sigmas is not None:
      state.hyperparams['sigma'] = sigmas[t]
    updates, state = tx.update(zeros, state, w)
    w = w + updates
    found.append(w)
  return found, state


def test_the_size_of_the_noise():
  # A schedule is read at the count before the increment, from 0 on; and
  # whatever a step adds, the next one takes back.
  sigmas = jnp.array([0.5, 0.0, 0.1, 0.0, 0.3, 2.0])
  scheduled = optax_sam.anti_pgd(lambda count: sigmas[count], key=1)
  found, state = _noise_after_steps(scheduled)
  for sigma, noise in zip(sigmas, found, strict=True):
    assert abs(float(jnp.std(noise) - sigma)) < 0.2 * sigma + 1e-6
  clean = optax_sam.without_noise(found[-1], state)
  np.testing.assert_allclose(clean, 0, atol=1e-6)

  injected = optax.inject_hyperparams(optax_sam.anti_pgd)(0.1, key=1)
  by_hand, state = _noise_after_steps(injected, sigmas)
  comparisons.assert_close(by_hand, found)
  clean = optax_sam.without_noise(found[-1], state)
  np.testing.assert_allclose(clean, 0, atol=1e-6)


def test_what_is_no_float_passes():
  zero = np.zeros((), jax.dtypes.float0)
  params = {'w': jnp.zeros(3), 'steps': jnp.asarray(7), 'nothing': None}
  tx = optax_sam.anti_pgd(0.1, key=1)
  given = {**params, 'steps': zero}
  updates, state = tx.update(given, tx.init(params), params)
  assert updates['steps'] is zero
  clean = optax_sam.without_noise({**params, 'w': updates['w']}, state)
  assert clean['steps'] is params['steps']
  assert clean['nothing'] is None
  np.testing.assert_allclose(clean['w'], 0, atol=1e-6)


def test_arguments_of_anti_pgd():
  parameters = inspect.signature(optax_sam.anti_pgd).parameters
  kinds = {name: parameter.kind for name, parameter in parameters.items()}
  assert kinds == {
    'sigma': inspect.Parameter.POSITIONAL_OR_KEYWORD,
    'key': inspect.Parameter.KEYWORD_ONLY,
  }


def test_types_of_anti_pgd():
  tx = optax_sam.anti_pgd(0.1, key=0)
  for dtype in ('bfloat16', 'float32'):
    params = training.params(dtype)
    state = tx.init(params)
    assert isinstance(state, AntiPgdState)
    updates, after = jax.jit(tx.update)(params, state, params, value=1.0)
    types = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert types(updates) == types(params)
    assert types(after) == types(state)
    assert types(jax.eval_shape(tx.init, params)) == types(state)


def test_a_bad_gradient_is_handed_on_and_leaves_no_trace():
  tx, params = optax_sam.anti_pgd(0.1, key=0), training.params()
  bad = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), params)
  updates, after = tx.update(bad, tx.init(params), params)
  assert not comparisons.all_finite(updates)
  _, expected = tx.update(params, tx.init(params), params)
  comparisons.assert_equal(after, expected)


@pytest.mark.parametrize(
  ('argument', 'bad'),
  [
    ('sigma', -0.1),
    ('sigma', float('nan')),
    ('sigma', None),
    ('key', 0.5),
    ('key', 'seed'),
  ],
)
def test_bad_arguments_of_anti_pgd(argument, bad):
  with pytest.raises(ValueError, match=f'^{argument} must be'):
    optax_sam.anti_pgd(**{'sigma': 0.1, 'key': 0, argument: bad})


def test_there_must_be_an_anti_pgd():
  tx = optax.sgd(0.1)
  with pytest.raises(ValueError, match='one AntiPgdState, but has 0'):
    optax_sam.without_noise(jnp.ones(2), tx.init(jnp.ones(2)))
