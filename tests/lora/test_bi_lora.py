"""Bi-LoRA against a transcription, and the limit of products of factors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec

import optax_sam
from optax_sam import lora
from tests.lora import networks

LABELS = {'kernels': 'frozen', 'lora': 'lora', 'second': 'ascent'}


def loss_fn(params, batch):
  merged = [
    lora.merge(lora.merge(w, **first), **second)
    for w, first, second in zip(
      params['kernels'], params['lora'], params['second'], strict=True
    )
  ]
  return networks.loss(merged, batch)


def start(zeros=False):
  return {
    'kernels': networks.kernels(),
    'lora': networks.adapters(3),
    'second': networks.adapters(4, zeros),
  }


def train(tx, zeros=False, steps=8, make=optax_sam.make_step):
  step = jax.jit(make(loss_fn, tx))
  params = jax.tree.map(jnp.asarray, start(zeros))
  state = tx.init(params)
  for batch in networks.BATCHES[:steps]:
    params, state, _ = step(params, state, batch)
  return params


def length(adapters):
  return np.sqrt(sum(np.sum(x**2) for x in networks.products(adapters)))


def transcription(rho, zeros=False, has_second=True):
  """The rule in NumPy, with the base optimizer SGD."""
  params = start(zeros)
  for batch in networks.BATCHES:
    merged = [
      w + first + has_second * second
      for w, first, second in zip(
        params['kernels'],
        networks.products(params['lora']),
        networks.products(params['second']),
        strict=True,
      )
    ]
    g = networks.gradients(merged, batch)
    down = networks.factor_gradients(params['lora'], g, 1.0)
    up = networks.factor_gradients(params['second'], g, 1.0)
    params['lora'] = jax.tree.map(
      lambda w, g: w - 0.01 * g, params['lora'], down
    )
    second = jax.tree.map(lambda w, g: w + 0.01 * g, params['second'], up)
    c = length(second)
    if c > rho:
      second = jax.tree.map(lambda w, c=c: np.sqrt(rho / c) * w, second)
    params['second'] = second
  return params


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('rho', [0.3, 3.0, 100.0])
def test_training_follows_the_rule(rho):
  """The limit applies at every step, at some steps, or never."""
  found = train(lora.bi_lora(optax.sgd(0.01), LABELS, rho=rho))
  networks.assert_close(found, transcription(rho))


@pytest.mark.usefixtures('float64')
def test_no_radius_is_lora():
  found = train(lora.bi_lora(optax.sgd(0.01), LABELS, rho=0.0), zeros=True)
  expected = transcription(0.0, has_second=False)
  networks.assert_close(found['lora'], expected['lora'])
  assert length(found['second']) == 0


@pytest.mark.usefixtures('float64')
def test_clipped_products_have_length_rho():
  found = train(
    lora.bi_lora(optax.sgd(0.2, momentum=0.9), LABELS, rho=0.3), steps=3
  )
  np.testing.assert_allclose(length(found['second']), 0.3, rtol=1e-12)
  np.testing.assert_allclose(
    lora.product_norm(found['second']), 0.3, rtol=1e-12
  )
  assert length(found['lora']) > 0.3
  networks.assert_close(found['kernels'], networks.kernels())


@pytest.mark.usefixtures('float64')
def test_labels_may_be_a_function_and_the_radius_a_schedule():
  radius = lambda count: 0.5 - 0.1 * jnp.float64(count)
  tx = lora.bi_lora(optax.sgd(0.01), lambda _: LABELS, rho=radius)
  found = train(tx, steps=3)
  np.testing.assert_allclose(length(found['second']), 0.3, rtol=1e-12)


@pytest.mark.usefixtures('float64')
def test_devices_follow_the_rule():
  """Each device has half of the batch."""

  def on_devices(loss_fn, tx):
    step = optax_sam.make_step(loss_fn, tx, axis_name='data')
    return jax.shard_map(
      step,
      mesh=Mesh(jax.devices()[:2], ('data',)),
      in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec('data')),
      out_specs=PartitionSpec(),
    )

  tx = lora.bi_lora(optax.sgd(0.01), LABELS, rho=0.3)
  networks.assert_close(train(tx, make=on_devices), transcription(0.3))


def test_frozen_kernels_have_no_state():
  params = jax.tree.map(jnp.float32, start())
  state = lora.bi_lora(optax.adam(0.1), LABELS, rho=0.1).init(params)
  sizes = sorted(x.size for x in jax.tree.leaves(state) if x.ndim == 2)
  assert sizes == sorted(4 * [10, 8, 8, 6])  # two moments of two adapters


@pytest.mark.parametrize(
  ('a', 'b'), [((4, 2), (2, 3)), ((5, 2), (2, 5)), ((2, 2), (2, 7))]
)
def test_factors_are_found_in_either_order(a, b):
  rng = np.random.default_rng(0)
  a, b = (jnp.float32(rng.normal(size=shape)) for shape in (a, b))
  size = np.linalg.norm(np.asarray(a) @ np.asarray(b))
  for layer in ({'a': a, 'b': b}, {'x': b, 'y': a}, [a, b], (b, a)):
    np.testing.assert_allclose(lora.product_norm([layer]), size, rtol=1e-5)


def test_layers_of_a_scan_count_each():
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(3, 5, 2)), rng.normal(size=(3, 2, 4))
  found = lora.product_norm({'a': jnp.float32(a), 'b': jnp.float32(b)})
  np.testing.assert_allclose(found, np.linalg.norm(a @ b), rtol=1e-5)


@pytest.mark.parametrize(
  'shapes', [[(4, 2)], [(4, 2), (3, 5)], [(2, 2), (2, 2)], [(4, 2), (2,)]]
)
def test_leaves_that_are_no_factors_raise(shapes):
  layer = {str(i): jnp.ones(shape) for i, shape in enumerate(shapes)}
  with pytest.raises(ValueError, match=r"factors must hold two .*'layer'"):
    lora.clip_products(0.1).init({'layer': layer})


def test_a_label_that_no_leaf_has_raises():
  tx = lora.bi_lora(optax.sgd(0.1), LABELS, rho=0.1, ascent='missing')
  with pytest.raises(ValueError, match=r"ascent must be .*'missing'"):
    tx.init(jax.tree.map(jnp.float32, start()))


def test_a_misspelled_frozen_label_raises():
  layer = {'a': jnp.ones((3, 1)), 'b': jnp.zeros((1, 3))}
  params = {'w': jnp.eye(3), 'lora': layer, 'second': layer}
  labels = {'w': 'freeze', 'lora': 'lora', 'second': 'ascent'}
  tx = lora.bi_lora(optax.sgd(0.1), labels, rho=0.1)
  with pytest.raises(ValueError, match=r"frozen must be .*'freeze'.*'frozen'"):
    tx.init(params)


def test_parameters_must_be_given():
  params = {'a': jnp.ones((3, 1)), 'b': jnp.ones((1, 3))}
  tx = lora.clip_products(0.1)
  with pytest.raises(ValueError, match='params must be given'):
    tx.update(params, tx.init(params))


def test_nnx_factors_are_found():
  nnx = pytest.importorskip('flax.nnx')
  layer = nnx.LoRA(4, 2, 3, rngs=nnx.Rngs(0))
  layer.lora_b[...] = jnp.ones((2, 3))
  size = np.linalg.norm(np.asarray(layer.lora_a[...] @ layer.lora_b[...]))
  for factors in (nnx.state(layer), nnx.to_pure_dict(nnx.state(layer))):
    np.testing.assert_allclose(lora.product_norm(factors), size, rtol=1e-5)
