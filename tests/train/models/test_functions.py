"""Models of each framework, against the framework's own functions."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from optax_sam.train.data import datasets
from optax_sam.train.distributed.sharding import Placement
from optax_sam.train.loop import evaluation, objectives, task
from optax_sam.train.models.functions import from_model
from tests.train.problems import assert_close

KEY = jax.random.key(3)
X = jax.random.normal(jax.random.key(0), (12, 4))


class Linen(nn.Module):
  rate: float = 0.0

  @nn.compact
  def __call__(self, x, *, deterministic=True, train=False):
    x = nn.BatchNorm(use_running_average=not train)(nn.Dense(6)(x))
    return nn.Dense(3)(nn.Dropout(self.rate, deterministic=deterministic)(x))


class Nnx(nnx.Module):
  def __init__(self, rate=0.0, *, rngs):
    self.first = nnx.Linear(4, 6, rngs=rngs)
    self.norm = nnx.BatchNorm(6, rngs=rngs)
    self.dropout = nnx.Dropout(rate, rngs=rngs)
    self.last = nnx.Linear(6, 3, rngs=rngs)

  def __call__(self, x):
    return self.last(self.dropout(self.norm(self.first(x))))


class Equinox(eqx.Module):
  first: eqx.nn.Linear
  norm: eqx.nn.BatchNorm
  dropout: eqx.nn.Dropout

  def __init__(self, rate=0.0, *, key):
    self.first = eqx.nn.Linear(4, 3, key=key)
    self.norm = eqx.nn.BatchNorm(3, 'batch', mode='batch')
    self.dropout = eqx.nn.Dropout(rate)

  def __call__(self, x, state, key):
    x, state = self.norm(self.first(x), state)
    return self.dropout(x, key=key), state


def equinox(rate):
  return eqx.nn.make_with_state(lambda key: Equinox(rate, key=key))


def pair(rate):
  def apply(params, x, *, train, key):
    assert (key is not None) == train
    if train and rate:
      x = x * jax.random.bernoulli(key, 1 - rate, x.shape)
    return x @ params

  return lambda key, x: jax.random.normal(key, (x.shape[1], 3)), apply


def by_linen():
  variables = Linen().init(KEY, X[:1])
  outputs, after = Linen().apply(
    variables, X, train=True, mutable=['batch_stats']
  )
  later = Linen().apply(variables | after, X)
  return outputs, later, jax.tree.leaves(after)


def by_nnx():
  module = Nnx(rngs=nnx.Rngs(KEY))
  outputs = module(X)
  module.eval()
  norm = module.norm
  return outputs, module(X), [norm.mean[...], norm.var[...]]


def by_equinox():
  module, state = equinox(0.0)(KEY)
  keys = jax.random.split(KEY, 12)

  def call(module, state):
    return jax.vmap(
      module, axis_name='batch', in_axes=(0, None, 0), out_axes=(0, None)
    )(X, state, keys)

  outputs, state = call(module, state)
  leaves = jax.tree.leaves(state)
  return outputs, call(eqx.nn.inference_mode(module), state)[0], leaves


def by_pair():
  outputs = X @ jax.random.normal(KEY, (4, 3))
  return outputs, outputs, []


FRAMEWORKS = {
  'linen': (Linen, by_linen),
  'nnx': (lambda rate: lambda rngs: Nnx(rate, rngs=rngs), by_nnx),
  'equinox': (equinox, by_equinox),
  'pair': (pair, by_pair),
}


@pytest.mark.parametrize('name', FRAMEWORKS)
def test_outputs_and_statistics_equal_those_of_the_framework(name):
  make, by_hand = FRAMEWORKS[name]
  model = from_model(make(0.0))
  params, statistics = jax.jit(model.init)(KEY, X[:1])
  found, after = model.apply(params, statistics, X, train=True, key=KEY)
  outputs, later, expected = by_hand()
  assert_close(found, outputs)
  assert_close(jax.tree.leaves(after), expected)
  assert jax.tree.structure(after) == jax.tree.structure(statistics)
  # Statistics can be used again, and evaluation does not change them.
  found, same = model.apply(params, after, X, train=False, key=None)
  assert_close(found, later)
  assert same is after
  again, _ = model.apply(params, statistics, X, train=True, key=KEY)
  assert_close(again, outputs)


@pytest.mark.parametrize('name', FRAMEWORKS)
def test_dropout_depends_on_the_key_and_not_on_the_call(name):
  model = from_model(FRAMEWORKS[name][0](0.5))
  params, statistics = model.init(KEY, X[:1])
  first, again, other = (
    model.apply(params, statistics, X, train=True, key=jax.random.key(key))[0]
    for key in (0, 0, 1)
  )
  np.testing.assert_array_equal(first, again)
  assert not np.allclose(first, other)
  still = [
    model.apply(params, statistics, X, train=False, key=None)[0]
    for _ in range(2)
  ]
  np.testing.assert_array_equal(*still)


def test_recomputed_statistics_of_equinox_are_those_of_the_data():
  data = {'inputs': np.asarray(3 * X + 1), 'labels': np.arange(12) % 3}

  def norm_of(key):
    del key
    return eqx.nn.BatchNorm(4, 'batch', mode='batch')

  model = from_model(eqx.nn.make_with_state(norm_of))
  dataset = datasets.Dataset(data, data, 0)
  problem = task.create(model, dataset, 6, objectives.build())
  params, statistics = problem.init(KEY)
  former = problem.outputs(params, statistics, data, KEY)[1]
  found = evaluation.statistics(problem, params, former, Placement())
  outputs = problem.evaluation_outputs(params, found, data)
  parts = np.stack([data['inputs'][0::2], data['inputs'][1::2]])
  mean, var = parts.mean(axis=(0, 1)), parts.var(axis=1).mean(axis=0)
  expected = (data['inputs'] - mean) / np.sqrt(var + 1e-5)
  np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)


def test_two_calls_of_a_constructor_have_one_structure():
  class Net(eqx.Module):
    layer: eqx.nn.Lambda
    weight: jax.Array

    def __init__(self, key):
      self.layer = eqx.nn.Lambda(lambda x: x)  # another function at each call
      self.weight = jax.random.normal(key, (4,))

    def __call__(self, x):
      return self.layer(x) @ self.weight

  model = from_model(Net)
  one, two = (model.init(jax.random.key(seed), X)[0] for seed in (0, 1))
  assert (
    jax.tree.structure(one)
    == jax.tree.structure(two)
    == (jax.tree.structure({'weight': 0}))
  )


def test_a_linen_module_without_a_mode():
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.BatchNorm(use_running_average=False)(x)

  model = from_model(Net())
  params, statistics = model.init(KEY, X)
  outputs, same = model.apply(params, statistics, X, train=False, key=None)
  np.testing.assert_allclose(jnp.mean(outputs, axis=0), jnp.zeros(4), atol=1e-5)
  assert same is statistics


def two_arguments(width, rngs):
  return Nnx(width, rngs=rngs)


def nnx_number(rngs):
  return rngs.params()


def equinox_number(key):
  return int(key.ndim)


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: Linen, r'not the class Linen: write Linen\(\)'),
    (
      lambda: Nnx(rngs=nnx.Rngs(0)),
      r'write lambda rngs: Nnx\(\.\.\., rngs=rng',
    ),
    (lambda: Equinox(key=KEY), r'write lambda key: Equinox\(\.\.\., key=key'),
    (lambda: equinox(0.0)(KEY), r'write lambda key: Equinox\('),
    (lambda: two_arguments, 'takes width, rngs: write lambda rngs'),
    (lambda: lambda: None, 'takes nothing: write lambda rngs'),
    (lambda: equinox_number, 'must return an equinox.Module, .* not int'),
    (lambda: nnx_number, 'must return an nnx.Module, not ShapeDtype'),
    (lambda: 3, 'model must be a linen module, .*not int'),
  ],
)
def test_other_models_raise(make, message):
  with pytest.raises(ValueError, match=message) as caught:
    from_model(make())
  assert '\n' not in str(caught.value)
