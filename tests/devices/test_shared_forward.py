"""The shared forward pass of `sparse_sam_layers` under shard_map."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import optax_sam

DEVICES = 8
ORDER = ('a', 'b', 'c', 'd')
LAST = {name: name in ('c', 'd') for name in ORDER}


def _loss(params, x):
  """Has one synchronized mean, as in batch norm, and three other norms."""
  x = jnp.tanh(x @ params['a'])
  x = x - jax.lax.pmean(jnp.mean(x, axis=0, keepdims=True), 'data')
  for name in ORDER[1:]:
    x *= jax.lax.rsqrt(jnp.mean(x**2, axis=1, keepdims=True) + 1e-3)
    x = jnp.tanh(x @ params[name])
  return jnp.mean(x**2)


def _step(method, check_vma):
  mesh = Mesh(np.array(jax.devices()[:DEVICES]), ('data',))

  def step(params, x):
    value_fn = lambda p: _loss(p, x)
    local = params
    if check_vma:
      local = jax.lax.pcast(params, 'data', to='varying')
    value, grads = jax.value_and_grad(value_fn)(local)
    updates, _ = method.update(
      grads, method.init(params), params, value_fn=value_fn
    )
    return updates, jax.lax.pmean(value, 'data')

  program = jax.shard_map(
    step,
    mesh=mesh,
    in_specs=(P(), P('data')),
    out_specs=P(),
    check_vma=check_vma,
  )
  keys = jax.random.split(jax.random.key(0), 5)
  params = {
    name: jax.random.normal(key, (16, 16))
    for name, key in zip(ORDER, keys, strict=False)
  }
  x = jax.random.normal(keys[4], (DEVICES * 32, 16))
  return jax.jit(program)(params, x)[0]


@pytest.mark.parametrize('check_vma', [True, False])
def test_the_direction_is_that_of_masked_sam(check_vma):
  ours = optax_sam.sparse_sam_layers(0.3, axis_name='data')
  masked = optax_sam.sam(0.3, mask=LAST, axis_name='data')
  found, expected = (_step(x, check_vma) for x in (ours, masked))
  for name in ORDER:
    np.testing.assert_allclose(
      found[name], expected[name], rtol=1e-5, atol=1e-6
    )
