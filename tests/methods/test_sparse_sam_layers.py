"""SAM on some leaves: the rule, the choice of leaves, what it saves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from tests import compiling
from tests.methods import checks
from tests.oracles import sparse_sam_layers, step
from tests.oracles.problems import NETWORK

test_follows_the_rule = checks.follows(sparse_sam_layers.CASES)
test_is_sam = checks.is_sam(
  optax_sam.sparse_sam_layers, {'layers': 1.0}, {'layers': None}
)
test_is_the_base_optimizer = checks.is_base(
  optax_sam.sparse_sam_layers, {'rho': 0.0}
)


@pytest.mark.usefixtures('float64')
def test_eight_steps_follow_the_rule_to_rounding_error():
  for case in sparse_sam_layers.CASES:
    ours = checks.run(case.optimizer(NETWORK.base(), NETWORK.batch(0)))
    rule = step.train(case.rule, NETWORK)
    np.testing.assert_allclose(ours.path[:8], rule.path[:8], rtol=0, atol=1e-12)


@pytest.mark.usefixtures('float64')
def test_a_mask_gives_sam_with_this_mask():
  mask = {name: name in ('bias', 'kernel') for name in NETWORK.shapes}
  ours = optax_sam.sparse_sam_layers(checks.RHO, layers=mask)
  masked = optax.chain(optax_sam.sam(checks.RHO, mask=mask), NETWORK.base())
  checks.equal_optimizers(optax.chain(ours, NETWORK.base()), masked)


@pytest.mark.usefixtures('float64')
def test_layers_are_chosen_from_the_leaves_of_the_mask():
  mask = {name: name in ('bias', 'kernel', 'out') for name in NETWORK.shapes}
  ours = optax_sam.sparse_sam_layers(checks.RHO, layers=0.34, mask=mask)
  only = {name: name == 'out' for name in NETWORK.shapes}
  masked = optax.chain(optax_sam.sam(checks.RHO, mask=only), NETWORK.base())
  checks.equal_optimizers(optax.chain(ours, NETWORK.base()), masked)


X = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
PARAMS = {
  'early': jnp.full((3, 3), 0.5),
  'late': jnp.full((3, 2), 0.3),
  'middle': {'scale': jnp.ones(3), 'shift': jnp.zeros(3)},
  'steps': jnp.zeros((), jnp.int32),
  'unused': jnp.ones(2),
}
ORDER = ('unused', 'early', 'scale', 'shift', 'late')


def losses(params, batch):
  """Reads the leaves in calls, a loop, a branch and a custom rule."""
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)  # reads none
  params = jax.tree.map(lambda x, y: x.astype(y.dtype), half, params)
  scale, shift = params['middle']['scale'], params['middle']['shift']
  affine = jax.checkpoint(lambda x, w: jax.nn.relu(x * w[None]))

  def body(x, _):
    return jax.lax.cond(True, affine, lambda x, _: x, x, scale), None

  x = jax.jit(jnp.dot)(batch, params['early'])
  x = jax.lax.scan(body, x, None, length=2)[0]
  x = jax.lax.while_loop(
    lambda c: c[0] < 1, lambda c: (c[0] + 1, c[1] + shift[None]), (0, x)
  )[1]
  return jnp.sum((x @ params['late']) ** 2, axis=1)


def chosen(mask):
  return {
    path[-1].key
    for path, is_chosen in jax.tree_util.tree_leaves_with_path(mask)
    if is_chosen
  }


@pytest.mark.parametrize('number', [1, 2, 3, 4, 5])
def test_leaves_by_depth_are_the_last_in_the_order_written_by_hand(number):
  mask = optax_sam.choose_leaves(losses, PARAMS, X, number / 5, by='depth')
  assert chosen(mask) == set(ORDER[-number:])


def test_leaves_by_fisher_information_have_the_largest_mean_squares():
  def losses(params, batch):
    x = jnp.tanh(batch @ params['early']) * params['middle']['scale'][None]
    x += params['middle']['shift'][None]
    return jnp.sum((x @ params['late']) ** 2, axis=1)

  scores = dict.fromkeys(ORDER, 0.0)
  for row in X:
    one = jax.grad(lambda p, x=row: losses(p, x[None])[0], allow_int=True)
    found = one(PARAMS)
    for name, leaf in {**found, **found['middle']}.items():
      if name in scores:
        scores[name] += np.mean(np.square(leaf))
  ranked = sorted(ORDER, key=scores.get)
  for share in (0.2, 0.4, 0.6, 0.8):
    mask = optax_sam.choose_leaves(losses, PARAMS, X, share)
    assert chosen(mask) == set(ranked[-round(5 * share) :])


@pytest.mark.parametrize('share', [0.01, 0.3, 0.5, 1])
def test_the_share_counts_floating_point_leaves(share):
  mask = optax_sam.choose_leaves(losses, PARAMS, X, share, by='depth')
  assert sum(jax.tree.leaves(mask)) == max(1, round(share * 5))
  assert not mask['steps']


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({'share': 0}, r'share must be .* in \(0, 1\], got 0'),
    ({'share': 1.5}, 'share must be .* got 1.5'),
    ({'share': None}, 'share must be .* got None'),
    ({'by': 'size'}, "by must be one of 'fisher', 'depth', got 'size'"),
    ({'batch': jnp.zeros((0, 3))}, 'batch must hold an example'),
  ],
)
def test_a_wrong_argument_of_choose_leaves_raises(given, message):
  with pytest.raises(ValueError, match=message):
    optax_sam.choose_leaves(
      losses, PARAMS, **{'batch': X, 'share': 0.5} | given
    )


@pytest.mark.parametrize('layers', [0, -0.5, 2, float('nan')])
def test_a_wrong_fraction_of_the_leaves_raises(layers):
  with pytest.raises(ValueError, match='layers must be a fraction'):
    optax_sam.sparse_sam_layers(layers=layers)


def _directions(method, params, losses, **given):
  """Returns the direction without and with jit."""
  value_fn = lambda p: jnp.mean(losses(p, X))
  grads = jax.grad(value_fn, allow_int=True)(params)
  grads = jax.tree.map(
    lambda g, p: g if p.dtype == g.dtype else None, grads, params
  )
  update = lambda p: method.update(
    grads, method.init(p), p, **given or {'value_fn': value_fn}
  )[0]
  return update(params), jax.jit(update)(params)


def network(params, batch):
  """Has random numbers, integers, a sort and loops before the last leaf."""
  x = jnp.tanh(batch @ params['early'])
  kept = jax.random.bernoulli(jax.random.key(0), 0.7, x.shape)
  x = jnp.where(kept, x, 0)
  x = jnp.take_along_axis(x, jnp.argsort(x, axis=0), axis=0)

  def body(x, key):
    return jnp.sin(x @ params['early']) + jax.random.normal(key, x.shape), None

  # Only without the derivative, which such a loop does not have.
  kernel, fixed = jax.lax.stop_gradient((params['early'], x))
  x += jax.lax.while_loop(
    lambda c: c[0] < 2, lambda c: (c[0] + 1, c[1] @ kernel), (0, fixed)
  )[1]
  x = jax.lax.scan(body, x, jax.random.split(jax.random.key(1), 2))[0]
  x = jax.checkpoint(lambda x, w: jnp.cos(x @ w))(x, params['early'])
  x = jax.lax.cond(x[0, 0] > 0, lambda x: x @ params['early'], jnp.sin, x)
  x = x * params['middle']['scale'][None] + params['middle']['shift'][None]
  return jnp.sum((x @ params['late']) ** 2, axis=1)


def test_random_numbers_loops_and_branches_before_the_chosen_leaves():
  layers = 0.6
  mask = optax_sam.choose_leaves(network, PARAMS, X, layers, by='depth')
  expected = _directions(optax_sam.sam(0.3, mask=mask), PARAMS, network)[1]
  method = optax_sam.sparse_sam_layers(0.3, layers=layers)
  for found in _directions(method, PARAMS, network):
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-5),
      found,
      expected,
    )


def test_a_gradient_function_gives_the_same_direction():
  value_fn = lambda p: jnp.mean(network(p, X))
  grad_fn = jax.grad(lambda p: value_fn({**p, 'steps': PARAMS['steps']}))
  params = {name: x for name, x in PARAMS.items() if name != 'steps'}
  method = optax_sam.sparse_sam_layers(0.3, layers=0.4)
  of_value = lambda p: value_fn({**p, 'steps': PARAMS['steps']})
  update = lambda **given: jax.jit(
    lambda p: method.update(grad_fn(p), method.init(p), p, **given)[0]
  )(params)
  found, expected = update(grad_fn=grad_fn), update(value_fn=of_value)
  for left, right in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
    np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)


def _without_gradient(tree):
  return {name: x for name, x in tree.items() if name != 'early'}


def test_frozen_leaves_are_not_differentiated():
  """Labels or absent gradients freeze leaves, which are not counted."""
  params = {name: x for name, x in PARAMS.items() if name != 'steps'}
  labels = {name: 'frozen' if name == 'early' else 'ours' for name in params}
  value_fn = lambda p: jnp.mean(network(p, X))
  grads = jax.grad(value_fn)(params)
  frozen = {**grads, 'early': None}
  mask = optax_sam.trainable(labels, frozen='frozen')
  directions, flops = {}, {}
  for name, given, settings in (
    ('labels', grads, {'mask': mask}),
    ('absent', frozen, {}),
    ('all', grads, {}),
  ):
    method = optax_sam.sparse_sam_layers(0.3, layers=0.5, **settings)
    update = jax.jit(
      lambda p, method=method, given=given: method.update(
        given, method.init(p), p, value_fn=value_fn
      )[0],
      **compiling.READ_AS_USERS,
    )
    directions[name] = update(params)
    analysis = update.lower(params).compile().cost_analysis()
    flops[name] = analysis['flops']
  only = {'early': False, 'late': True, 'unused': False}
  only['middle'] = {'scale': False, 'shift': True}
  expected = optax_sam.sam(0.3, mask=only)
  expected = expected.update(
    grads, expected.init(params), params, value_fn=value_fn
  )[0]
  assert directions['absent']['early'] is None
  np.testing.assert_array_equal(directions['labels']['early'], grads['early'])
  for name in ('labels', 'absent'):
    for left, right in zip(
      jax.tree.leaves(_without_gradient(directions[name])),
      jax.tree.leaves(_without_gradient(expected)),
      strict=True,
    ):
      np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)
    assert flops[name] < 0.8 * flops['all']
