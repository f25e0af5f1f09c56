"""Flat-LoRA against a transcription; its limits and its memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec

import optax_sam
from optax_sam import lora
from tests import compiling
from tests.lora import networks

STEPS = 10


def loss_fn(adapters, batch, kernels, step, sigma):
  merged = [
    lora.merge(w, layer['a'], layer['b'], scale=networks.SCALE)
    for w, layer in zip(kernels, adapters, strict=True)
  ]
  noise = lora.flat_noise(merged, 7, step, total_steps=STEPS, sigma=sigma)
  return networks.loss(jax.tree.map(jnp.add, merged, noise), batch)


def train(sigma, steps=8, make=optax_sam.make_step):
  tx = optax.sgd(0.2)
  step = jax.jit(make(functools.partial(loss_fn, sigma=sigma), tx))
  adapters = jax.tree.map(jnp.asarray, networks.adapters(3))
  kernels = [jnp.asarray(w) for w in networks.kernels()]
  state = tx.init(adapters)
  for t in range(steps):
    batch = networks.BATCHES[t]
    adapters, state, _ = step(adapters, state, batch, kernels, t)
  return adapters


def transcription(sigma, steps=8):
  """The rule in NumPy, with the draws of JAX."""
  adapters, kernels = networks.adapters(3), networks.kernels()
  for t in range(steps):
    noisy = []
    for number, (w, change) in enumerate(
      zip(kernels, networks.products(adapters, networks.SCALE), strict=True)
    ):
      merged = w + change
      key = jax.random.key(7)
      for data in (t, number):
        key = jax.random.fold_in(key, data)
      z = np.asarray(jax.random.normal(key, w.shape, jnp.float64))
      ramp = (1 - np.cos(np.pi * t / STEPS)) / 2
      noise = np.empty_like(merged)
      for j in range(w.shape[1]):
        size = ramp * sigma * np.sqrt(np.sum(merged[:, j] ** 2))
        noise[:, j] = size / np.sqrt(w.shape[0]) * z[:, j]
      noisy.append(merged + noise)
    g = networks.factor_gradients(
      adapters, networks.gradients(noisy, networks.BATCHES[t]), networks.SCALE
    )
    adapters = jax.tree.map(lambda w, g: w - 0.2 * g, adapters, g)
  return adapters


@pytest.mark.usefixtures('float64')
def test_training_follows_the_rule():
  networks.assert_close(train(0.5), transcription(0.5))


@pytest.mark.usefixtures('float64')
def test_no_noise_is_lora():
  plain = networks.adapters(3)
  for batch in networks.BATCHES:
    merged = [
      w + change
      for w, change in zip(
        networks.kernels(),
        networks.products(plain, networks.SCALE),
        strict=True,
      )
    ]
    g = networks.factor_gradients(
      plain, networks.gradients(merged, batch), networks.SCALE
    )
    plain = jax.tree.map(lambda w, g: w - 0.2 * g, plain, g)
  networks.assert_close(train(0.0), plain)


@pytest.mark.usefixtures('float64')
def test_the_first_step_has_no_noise_and_the_second_has():
  networks.assert_close(train(0.5, steps=1), train(0.0, steps=1))
  assert (train(0.5, steps=2)[0]['a'] != train(0.0, steps=2)[0]['a']).any()


def test_the_ramp_ends_at_sigma_times_the_norm():
  merged = jnp.ones((4000, 2)) * jnp.array([[1.0, 3.0]])
  for steps, at in ((100, 100), (None, 0)):
    noise = lora.flat_noise(merged, 0, at, total_steps=steps, sigma=0.1)
    lengths = jnp.linalg.norm(noise, axis=0) / jnp.linalg.norm(merged, axis=0)
    np.testing.assert_allclose(lengths, 0.1, rtol=0.05)


def test_draws_depend_on_key_step_and_leaf_alone():
  merged = [jnp.ones((3, 3))] * 2
  draw = functools.partial(lora.flat_noise, total_steps=None)
  first = draw(merged, 0, 5)
  again = jax.jit(draw)(merged, jax.random.key(0), jnp.int32(5))
  for x, y in zip(first, again, strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-5)
  others = [first[1], draw(merged, 0, 6)[0], draw(merged, 1, 5)[0]]
  assert all((x != first[0]).any() for x in others)


def test_the_norm_is_a_constant_of_the_gradient():
  noisy_sum = lambda w: jnp.sum(w + lora.flat_noise(w, 0, 1, total_steps=2))
  gradient = jax.grad(noisy_sum)(jnp.full((3, 2), 2.0))
  np.testing.assert_array_equal(gradient, np.ones((3, 2)))


def test_vectors_have_no_noise_and_integers_raise():
  noise = lora.flat_noise({'bias': jnp.ones(3)}, 0, 1, total_steps=2)
  assert noise['bias'].tolist() == [0, 0, 0]
  with pytest.raises(ValueError, match=r'merged must hold floating-point'):
    lora.flat_noise(jnp.ones((2, 2), jnp.int8), 0, 1, total_steps=2)


def test_the_noise_stays_at_its_largest_after_the_run():
  last, later = (
    lora.flat_noise(jnp.ones((2, 2)), 0, 30, total_steps=total)
    for total in (None, 10)
  )
  np.testing.assert_allclose(later, last, rtol=1e-6)


def test_an_empty_kernel_has_no_noise():
  noise = lora.flat_noise(jnp.ones((0, 2)), 0, 1, total_steps=2)
  assert noise.shape == (0, 2)


@pytest.mark.parametrize(
  ('kernel', 'a', 'b', 'words'),
  [
    (jnp.ones((3, 4)), (2, 4), (3, 2), r'shape \(3, 4\), got \(2, 4\) and'),
    (jnp.ones((3, 4)), (3,), (3,), r'got \(3,\) and \(3,\)'),
    (jnp.ones((3, 4)), (1, 2), (2, 4), r'got \(1, 2\) and \(2, 4\)'),
    (jnp.ones((3, 4), jnp.int8), (3, 2), (2, 4), 'kernel must hold floating'),
  ],
)
def test_kernels_that_cannot_be_merged_raise(kernel, a, b, words):
  with pytest.raises(ValueError, match=words):
    lora.merge(kernel, jnp.ones(a), jnp.ones(b))


@pytest.mark.parametrize('bad', [{'total_steps': 0}, {'sigma': -1.0}])
def test_settings_out_of_range_raise(bad):
  with pytest.raises(ValueError, match=next(iter(bad))):
    lora.flat_noise(jnp.ones((2, 2)), 0, 1, **{'total_steps': 2, **bad})


@pytest.mark.usefixtures('float64')
def test_micro_batches_share_the_noise_of_their_step():
  parts = functools.partial(optax_sam.make_step, accumulate_steps=2)
  networks.assert_close(train(0.5, make=parts), transcription(0.5))


def test_devices_draw_the_same_noise():
  """The average of the gradients is that of the whole batch."""

  def on_devices(loss_fn, tx):
    step = optax_sam.make_step(loss_fn, tx, axis_name='data')

    def over(adapters, state, batch, *args):
      mapped = jax.shard_map(
        step,
        mesh=Mesh(jax.devices()[:2], ('data',)),
        in_specs=(
          *(PartitionSpec(),) * 2,
          PartitionSpec('data'),
          *(PartitionSpec(),) * len(args),
        ),
        out_specs=PartitionSpec(),
      )
      return mapped(adapters, state, batch, *args)

    return over

  with jax.enable_x64(True):
    networks.assert_close(train(0.5, make=on_devices), transcription(0.5))


def _memory(layer, layers, size=256):
  """Temporary and returned bytes of a gradient of all layers, in kernels."""

  def loss(adapters, ws, x, step):
    def one(x, given):
      return jnp.tanh(layer(x, *given, step)), None

    keys = jax.random.split(jax.random.key(0), layers)
    return jnp.sum(jax.lax.scan(one, x, (ws, *adapters, keys))[0])

  array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
  adapters = array(layers, size, 2), array(layers, 2, size)
  step = jax.ShapeDtypeStruct((), jnp.int32)
  gradient = jax.jit(jax.grad(loss), **compiling.AS_USERS)
  given = adapters, array(layers, size, size), array(4, size), step
  found = gradient.lower(*given).compile().memory_analysis()
  unit = 4 * size**2
  return found.temp_size_in_bytes / unit, found.output_size_in_bytes / unit


def test_no_noise_is_stored_between_passes_or_steps():
  def layer(x, w, a, b, key, step):
    merged = lora.merge(w, a, b)
    return x @ (merged + lora.flat_noise(merged, key, step, total_steps=9))

  few, many = (_memory(jax.checkpoint(layer), n) for n in (4, 8))
  assert many[0] - few[0] < 0.5  # of four more layers
  assert many[1] < 0.2  # the gradients of the adapters alone
  # Without `jax.checkpoint` each layer has a merged kernel until its backward
  # pass.
  assert _memory(layer, 8)[0] - _memory(layer, 4)[0] > 3.5
