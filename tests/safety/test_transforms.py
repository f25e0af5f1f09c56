"""Steps under `jax.vmap`, and derivatives of steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from tests.contracts import comparisons, table

POINTS = {
  'two parallel gradients': ([3.0, 4.0], [0.0, 0.0], 0.0),
  'a gradient of zero': ([0.0, 0.0], [1.0, 1.0], 0.0),
  'neither parallel nor zero': ([0.6, 0.8], [0.1, 0.3], 1.0),
}


def _losses(p, batch):
  """Per-example losses: a parabola in `w`, or a polynomial."""
  w, b, bend = p['w'], p['b'], jax.lax.stop_gradient(p['bend'])
  bent = jnp.sum(w**4) / 4 + jnp.sum(b**2) * jnp.sum(w)
  return batch['weight'] * (0.5 * jnp.sum(w**2) + bend * bent)


@functools.cache
def _derivative(name):
  """Returns the derivative of parameters and state after some steps."""
  row = table.ROWS[name]
  tx = optax.with_extra_args_support(row.whole(base=lambda: optax.sgd(0.1)))
  batch = optax.tree.ones_like(table.BATCH_LIKE)
  value_fn = lambda p: jnp.mean(_losses(p, batch))

  def step(carry, _):
    params, state = carry
    updates, state = tx.update(
      jax.grad(value_fn)(params),
      state,
      params,
      value_fn=value_fn,
      per_example_value_fn=_losses,
      batch=batch,
    )
    return (optax.apply_updates(params, updates), state), None

  def end(params):
    found = jax.lax.scan(step, (params, tx.init(params)), length=3)[0]
    floats = [
      x for x in jax.tree.leaves(found) if jnp.issubdtype(x.dtype, jnp.floating)
    ]
    return sum(jnp.sum(x.astype(jnp.float32)) for x in floats)

  return jax.jit(jax.grad(end))


@table.every_row()
def test_derivatives_of_updates_are_finite(name):
  """This includes metrics, and norms of 0."""
  for w, b, bend in POINTS.values():
    params = {'w': jnp.array(w), 'b': jnp.array(b), 'bend': jnp.float32(bend)}
    assert comparisons.all_finite(_derivative(name)(params))


MATRIX = np.array([[3.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 1.0]])


def _gradient(w):
  return MATRIX @ w + 0.2 * w**3


def _sam(w, epsilons):
  return _gradient(w + epsilons[0])


def _gsam(w, epsilons):
  g, gp = _gradient(w), _gradient(w + epsilons[0])
  return gp - 0.4 * (g - (g @ gp) / (gp @ gp) * gp)


def _mixed(w, epsilons):
  g, gp = _gradient(w), _gradient(w + epsilons[0])
  return 0.2 * g / np.linalg.norm(g) + 0.8 * gp


def _lookbehind(w, epsilons):
  first = _gradient(w + epsilons[0])
  second = _gradient(w + epsilons[0] + epsilons[1])
  return 0.5 * (first + second)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize(
  ('rule', 'method'),
  [
    (_sam, optax_sam.sam(0.3)),
    (_gsam, optax_sam.gsam(0.3)),
    (
      _mixed,
      optax_sam.gradient_norm_penalty(0.3, normalize_clean=True),
    ),
    (_lookbehind, optax_sam.lookbehind(optax.sgd(1.0), rho=0.3)),
  ],
)
def test_derivatives_treat_the_perturbation_as_constant(rule, method):
  """Derivatives equal finite differences with constant epsilon."""
  w, direction = np.array([0.7, -0.4, 1.1]), np.array([0.3, 0.9, -0.5])
  epsilons, point = [], w
  for _ in range(2):
    g = _gradient(point)
    epsilons.append(0.3 * g / np.linalg.norm(g))
    point = point + epsilons[-1]
  sign = -1 if rule is _lookbehind else 1
  end = lambda w: sign * direction @ rule(w, epsilons)
  expected = [(end(w + h) - end(w - h)) / 2e-5 for h in 1e-5 * np.eye(3)]

  def found(w):
    grad_fn = lambda w: jnp.asarray(MATRIX) @ w + 0.2 * w**3
    given = grad_fn(w), method.init(w), w
    return direction @ method.update(*given, grad_fn=grad_fn)[0]

  w = jnp.asarray(w)
  np.testing.assert_allclose(found(w), end(np.asarray(w)), rtol=1e-6)
  np.testing.assert_allclose(jax.grad(found)(w), expected, rtol=1e-6)


MEMBERS = 3


@pytest.mark.parametrize(
  ('over_members', 'ascend', 'seconds'),
  [
    # Under vmap a conditional becomes a select, which computes both branches.
    ('vmap', None, MEMBERS),
    ('scan', None, 1),
    ('vmap', False, 0),
    ('vmap', True, MEMBERS),
  ],
)
def test_an_ensemble_counts_perturbed_gradients_per_member(
  over_members, ascend, seconds
):
  """One of three members takes an ascent step."""
  tx, ran = optax_sam.look_sam(0.1, period=2), []

  def grad_fn(w):
    jax.debug.callback(ran.append, w)
    return w**3

  def step(w, state):
    given = {} if ascend is None else {'ascend': ascend}
    return tx.update(w**3, state, w, grad_fn=grad_fn, **given)

  members = jnp.arange(1.0, 7.0).reshape(MEMBERS, 2)
  states = jax.vmap(tx.init)(members)
  states = states._replace(
    policy=states.policy._replace(step_count=jnp.array([0, 1, 1], jnp.int32))
  )
  if over_members == 'vmap':
    run = jax.vmap(step)
  else:
    run = lambda *given: jax.lax.map(lambda pair: step(*pair), given)
  compiled = jax.jit(run).lower(members, states).compile()
  directions, after = compiled(members, states)
  jax.block_until_ready(directions)
  jax.effects_barrier()
  assert len(ran) == seconds
  has_branches = 'conditional(' in compiled.as_text()
  assert has_branches == (over_members == 'scan')
  np.testing.assert_array_equal(after.info.decided, [True, False, False])
  taken = [True, False, False] if ascend is None else [ascend] * MEMBERS
  np.testing.assert_array_equal(after.info.ascended, taken)
  epsilon = lambda g: 0.1 * g / np.linalg.norm(g)
  for w, found, ascended in zip(
    np.asarray(members), directions, taken, strict=True
  ):
    expected = (w + epsilon(w**3)) ** 3 if ascended else w**3
    np.testing.assert_allclose(found, expected, rtol=1e-5)
