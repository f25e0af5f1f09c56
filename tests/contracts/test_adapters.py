"""The contracts of fine-tuning with low-rank adapters."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec

import optax_sam
from optax_sam import catalog, lora
from tests.contracts import comparisons, table
from tests.lora import networks

LABELS = {'lora': 'lora', 'second': 'ascent'}
KERNELS = networks.kernels()


def merged(pairs: Any) -> list[jax.Array]:
  """Returns the merged kernels, with the dtype of the adapters."""
  return [
    lora.merge(jnp.asarray(w, layer['a'].dtype), **layer)
    for w, layer in zip(KERNELS, pairs, strict=True)
  ]


def loss(kernels: Any, batch: Any) -> jax.Array:
  """Returns the loss of merged kernels, in their dtype."""
  return networks.loss(kernels, optax.tree.cast(batch, kernels[0].dtype))


def plain_loss(params: Any, batch: Any, step: Any) -> jax.Array:
  """Returns the loss without any perturbation."""
  del step
  return loss(merged(params['lora']), batch)


def flat_lora(sigma: float, base: Any) -> tuple[Callable[..., Any], Any]:
  """Returns the loss of Flat-LoRA, and the optimizer."""

  def loss_fn(params: Any, batch: Any, step: Any) -> jax.Array:
    kernels = merged(params['lora'])
    noise = lora.flat_noise(kernels, 7, step, total_steps=20, sigma=sigma)
    return loss(jax.tree.map(jnp.add, kernels, noise), batch)

  return loss_fn, base


def bi_lora(rho: float, base: Any) -> tuple[Callable[..., Any], Any]:
  """Returns the loss of Bi-LoRA, and the optimizer."""

  def loss_fn(params: Any, batch: Any, step: Any) -> jax.Array:
    del step
    changes = [
      lora.merge(jnp.zeros_like(w), **layer)
      for w, layer in zip(merged(params['lora']), params['second'], strict=True)
    ]
    kernels = merged(params['lora'])
    return loss(jax.tree.map(jnp.add, kernels, changes), batch)

  return loss_fn, lora.bi_lora(base, LABELS, rho=rho)


# How each method of the catalog trains adapters; a new one must be added.
TRAINING = {'flat_noise': flat_lora, 'bi_lora': bi_lora}

every_method = pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=pytest.mark.xdist_group(name))
    for name, method in catalog.METHODS.items()
    if method.place == 'adapters'
  ],
)


def start(name: str, dtype: Any = jnp.float32) -> Any:
  """Returns the adapters; the product of the second pair is zero."""
  params = {'lora': networks.adapters(3)}
  if name == 'bi_lora':
    params['second'] = networks.adapters(4, zeros=True)
  return jax.tree.map(lambda x: jnp.asarray(x, dtype), params)


def program(
  name: str, radius: float = 0.3, base: Any = None, **how: Any
) -> tuple[Any, Callable[..., Any]]:
  """Returns the optimizer and its training step."""
  loss_fn, tx = TRAINING[name](radius, base or table.base())
  return tx, optax_sam.make_step(loss_fn, tx, **how)


def train(step: Callable[..., Any], state: Any, steps: range) -> Any:
  """Takes the given steps from (params, opt_state)."""
  for t in steps:
    state = step(*state, networks.BATCHES[t % len(networks.BATCHES)], t)[:2]
  return state


@every_method
def test_the_state_consists_of_arrays_also_when_abstract(name):
  tx, _ = program(name)
  params = start(name)
  state = tx.init(params)
  assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(state))
  comparisons.assert_equal(jax.jit(tx.init)(params), state)
  types = comparisons.types(state)
  assert comparisons.types(jax.eval_shape(tx.init, params)) == types


@every_method
@pytest.mark.parametrize('dtype', ['bfloat16', 'float16', 'float64'])
def test_a_scan_accepts_the_step(name, dtype):
  with (
    jax.enable_x64(dtype == 'float64'),
    jax.numpy_dtype_promotion('standard'),  # Optax promotes dtypes
  ):
    tx, step = program(name)
    params = start(name, dtype)
    state = (params, tx.init(params))
    batches = {
      key: jnp.stack([batch[key] for batch in networks.BATCHES])
      for key in networks.BATCHES[0]
    }

    def body(state: Any, given: Any) -> tuple[Any, Any]:
      batch, t = given
      params, opt_state, output = step(*state, batch, t)
      return (params, opt_state), output.loss

    given = (batches, jnp.arange(len(networks.BATCHES)))
    after, losses = jax.lax.scan(body, state, given)
    assert comparisons.types(after) == comparisons.types(state)
    assert comparisons.all_finite((after, losses))


@every_method
def test_a_zero_radius_is_training_of_the_adapters_alone(name):
  tx, step = program(name, 0.0)
  params = start(name)
  found = train(jax.jit(step), (params, tx.init(params)), range(6))
  tx = table.base()
  step = jax.jit(optax_sam.make_step(plain_loss, tx))
  params = {'lora': params['lora']}
  expected = train(step, (params, tx.init(params)), range(6))
  comparisons.assert_close(found[0]['lora'], expected[0]['lora'])


@every_method
def test_training_reduces_the_loss_and_compiles_once(name):
  tx, step = program(name)
  traces = []

  def counted(*given: Any) -> Any:
    traces.append(None)
    return step(*given)

  params = start(name)
  compiled = jax.jit(counted, donate_argnums=(0, 1))
  state = jax.tree.map(jnp.copy, (params, tx.init(params)))
  after = train(compiled, state, range(40))[0]
  before, end = (
    np.mean([plain_loss(p, batch, 0) for batch in networks.BATCHES])
    for p in (params, after)
  )
  assert end < 0.8 * before
  assert len(traces) == 1


@every_method
def test_a_restored_checkpoint_continues_bit_identically(name, tmp_path):
  tx, step = program(name)
  step = jax.jit(step)
  params = start(name)
  saved = train(step, (params, tx.init(params)), range(3))
  restored = comparisons.saved_and_restored(saved, tmp_path / 'state')
  comparisons.assert_equal(
    train(step, restored, range(3, 7)), train(step, saved, range(3, 7))
  )


@every_method
@pytest.mark.usefixtures('float64')
def test_devices_and_micro_batches_take_the_step_of_the_whole_batch(name):
  tx, whole = program(name)
  params = start(name, jnp.float64)
  state = (params, tx.init(params))
  expected = train(jax.jit(whole), state, range(4))
  _, parts = program(name, accumulate_steps=3)
  comparisons.assert_close(
    train(jax.jit(parts), state, range(4)), expected, 1e-12
  )
  _, local = program(name, axis_name='data')
  everywhere = PartitionSpec()
  mapped = jax.shard_map(
    lambda *given: local(*given)[:2],
    mesh=Mesh(jax.devices()[:2], ('data',)),
    in_specs=(everywhere, everywhere, PartitionSpec('data'), everywhere),
    out_specs=everywhere,
  )
  comparisons.assert_close(
    train(jax.jit(mapped), state, range(4)), expected, 1e-12
  )


@every_method
def test_members_of_an_ensemble_train_as_each_alone(name):
  tx, step = program(name)
  first = start(name)
  second = jax.tree.map(lambda x: 1.1 * x, first)
  states = [(params, tx.init(params)) for params in (first, second)]
  both = jax.tree.map(lambda *x: jnp.stack(x), *states)
  together = jax.jit(
    jax.vmap(lambda *given: step(*given)[:2], in_axes=(0, 0, None, None))
  )
  found = train(together, both, range(4))
  for number, state in enumerate(states):
    alone = train(jax.jit(step), state, range(4))
    mine = jax.tree.map(lambda x, i=number: x[i], found)
    comparisons.assert_close(mine, alone, 1e-5)


def test_injected_radius_of_bi_lora_is_read_at_every_step():
  factory = optax.inject_hyperparams(
    lora.bi_lora, static_args=('base', 'labels', 'ascent', 'frozen')
  )
  tx = factory(optax.sgd(0.2), LABELS, rho=0.03)
  loss_fn, _ = bi_lora(0.3, optax.sgd(0.2))
  step = jax.jit(optax_sam.make_step(loss_fn, tx))
  params = start('bi_lora')
  state = params, tx.init(params)
  for t, rho in enumerate((0.03, 0.01)):
    params, opt_state = state
    opt_state.hyperparams['rho'] = jnp.asarray(rho)
    state = train(step, (params, opt_state), range(t, t + 1))
    found = lora.product_norm(state[0]['second'])
    np.testing.assert_allclose(found, rho, rtol=1e-5)


def test_flat_lora_draws_by_the_step_that_is_given():
  _, step = program('flat_noise')
  step = jax.jit(functools.partial(step, start('flat_noise')))
  tx = table.base()
  state, batch = tx.init(start('flat_noise')), networks.BATCHES[0]
  first, same, other = (step(state, batch, t)[2].loss for t in (3, 3, 4))
  assert first == same
  assert first != other
