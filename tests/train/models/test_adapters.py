"""Low-rank adapters of the trainer's models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam.lora
from optax_sam.train import compare
from optax_sam.train.comparison import plan
from optax_sam.train.models import adapters
from optax_sam.train.models.functions import from_model
from tests.train import problems
from tests.train.models.test_functions import FRAMEWORKS, X

RANDOM = np.random.default_rng(0)
IMAGES = jnp.asarray(RANDOM.normal(size=(6, 8, 8, 1)), jnp.float32)
KEY = jax.random.key(3)
MODEL = from_model(problems.MODULES['cnn'])
noise = functools.partial(
  optax_sam.lora.flat_noise, total_steps=None, sigma=0.3
)


def moved(params, seed=1):
  """Returns adapters of which no array is zero."""
  keys = iter(jax.random.split(jax.random.key(seed), 99))
  return jax.tree.map(
    lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), params
  )


def merged(weights, *pairs):
  """Returns weights with the products of adapters added, by NumPy."""

  def of_leaf(path, kernel):
    kernel = np.asarray(kernel)
    for pair in pairs:
      found = functools.reduce(lambda x, part: x[part.key], path, pair)
      if found is not None:
        product = np.asarray(found['a']) @ np.asarray(found['b'])
        kernel = kernel + product.reshape(kernel.shape)
    return kernel

  return jax.tree_util.tree_map_with_path(of_leaf, weights)


def outputs(model, params, statistics, *, train):
  return model.apply(params, statistics, IMAGES, train=train, key=KEY)


def test_new_adapters_change_nothing_and_kernels_alone_have_them():
  weights, statistics = MODEL.init(KEY, IMAGES[:1])
  model = adapters.adapted(MODEL, 3)
  params, own = model.init(KEY, IMAGES[:1])
  for train in (True, False):
    expected, changed = outputs(MODEL, weights, statistics, train=train)
    found, after = outputs(model, params, own, train=train)
    np.testing.assert_array_equal(found, expected)
    problems.assert_equal(after['batch_stats'], changed['batch_stats'])
  shapes = {
    jax.tree_util.keystr(path): leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }
  kernels = [x for x in jax.tree.leaves(weights) if x.ndim > 1]
  assert len(shapes) == 2 * len(kernels)
  for kernel in kernels:
    inputs, rank = kernel.size // kernel.shape[-1], min(3, *kernel.shape[-1:])
    assert {(inputs, rank), (rank, kernel.shape[-1])} <= set(shapes.values())


@pytest.mark.parametrize('name', FRAMEWORKS)
def test_models_of_all_frameworks_have_adapters(name):
  model = from_model(FRAMEWORKS[name][0](0.2))
  if name == 'equinox':  # its kernels have the outputs first
    with pytest.raises(ValueError, match='leave flat_noise out'):
      adapters.adapted(model, 2, noise=noise)
  given = noise if model.outputs_last else None
  own = adapters.adapted(model, 2, has_second_pair=True, noise=given)
  weights, statistics = model.init(KEY, X[:1])
  params, frozen = own.init(KEY, X[:1])
  expected = model.apply(weights, statistics, X, train=False, key=None)[0]
  found = own.apply(params, frozen, X, train=False, key=None)[0]
  np.testing.assert_array_equal(found, expected)

  def loss(params):
    outputs, _ = own.apply(params, frozen, X, train=True, key=KEY)
    return jnp.mean(outputs**2)

  grads = jax.grad(loss)(params)
  for pair in grads.values():
    leaves = jax.tree_util.tree_leaves_with_path(pair)
    moved = [jnp.any(leaf) for path, leaf in leaves if path[-1].key == 'b']
    assert moved
    assert all(moved)


def test_the_second_pair_and_the_noise_act_in_training_only():
  weights, statistics = MODEL.init(KEY, IMAGES[:1])
  both = adapters.adapted(MODEL, 3, has_second_pair=True)
  params, own = both.init(KEY, IMAGES[:1])
  params = moved(params)
  first = merged(weights, params['lora'])
  total = merged(weights, params['lora'], params['second'])
  for train, kernels in ((False, first), (True, total)):
    expected = outputs(MODEL, kernels, statistics, train=train)[0]
    found = outputs(both, params, own, train=train)[0]
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
  noisy = adapters.adapted(MODEL, 3, noise=noise)
  params = {'lora': params['lora']}
  for step in (0, 1):
    drawn = jax.tree.map(jnp.add, first, noise(first, KEY, step))
    for train, kernels in ((False, first), (True, drawn)):
      expected = outputs(MODEL, kernels, statistics, train=train)[0]
      found, after = outputs(noisy, params, own, train=train)
      np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
    own = {**own, 'frozen': after['frozen']}


@pytest.mark.parametrize('name', ['sgd', 'sam', 'swa', 'flat_noise', 'bi_lora'])
def test_runs_train_adapters_and_leave_the_weights(name):
  one = problems.trainer(name, model='cnn', adapter_rank=2, steps=60)
  start = one.start(0)
  read = lambda state: jax.tree.map(np.asarray, (*state[1:3],))
  before = read(start.state)
  one.run(start, 0)
  after = read(start.state)
  problems.assert_equal(
    after[1]['frozen']['weights'], before[1]['frozen']['weights']
  )
  assert after[1]['frozen']['step'] == one.config.steps
  changed = jax.tree.map(lambda x, y: bool(np.any(x != y)), after, before)
  assert all(jax.tree.leaves((changed[0], changed[1]['batch_stats'])))
  train = [one.task.inputs.train()]
  assert one.evaluate(*after, train)[0] < one.evaluate(*before, train)[0]


@pytest.mark.parametrize(
  ('name', 'given'), [('flat_noise', {'sigma': 0.0}), ('bi_lora', {'rho': 0.0})]
)
def test_without_a_radius_they_train_as_the_base_optimizer(name, given):
  plain = problems.finished(problems.trainer('sgd', adapter_rank=2))
  one = problems.trainer(name, given=given, adapter_rank=2)
  found = problems.finished(one).state.params['lora']
  problems.assert_close(found, plain.state.params['lora'])


def test_own_weights_are_tuned_by_all_methods_of_a_comparison():
  weights = jnp.asarray(RANDOM.normal(size=(4, 3)), jnp.float32)
  x = RANDOM.normal(size=(80, 4)).astype(np.float32)
  y = np.argmax(x[:, :3], axis=1)
  seen = []

  def init(*_):
    return {'w': weights}

  def apply(params, inputs):
    seen.append(params['w'].shape)
    return inputs @ params['w']

  found = compare(
    (init, apply),
    (x[:60], y[:60]),
    (x[60:], y[60:]),
    methods=('sam', 'flat_noise', 'Bi-LoRA'),
    adapter_rank=1,
    steps=30,
    batch_size=20,
    seeds=2,
    timing_rounds=0,
    verbose=False,
    weight_decay=0.0,
  )
  assert set(seen) == {(4, 3)}
  assert {run.method for run in found.runs} == {
    *('sgd', 'sam', 'flat_noise', 'bi_lora')
  }
  assert found.settings['adapter_rank'] == 1
  # The weights are the same with every seed, and rank 1 cannot replace them.
  start = float(jnp.mean(jnp.argmax(x[60:] @ weights, axis=1) == y[60:]))
  for run in found.runs:
    assert run.evaluations[-1]['test_accuracy'] > start


@pytest.mark.parametrize('name', ['flat_noise', 'bi_lora'])
def test_methods_for_adapters_ask_for_them(name):
  config = problems.compare_config(methods=(name,))
  with pytest.raises(ValueError, match=f'{name} trains .* add --adapter-rank'):
    plan.method_settings(config)
