"""Parameters sharded over axes of type `Explicit`.

As for Optax's transformations, the state has the same type after `init` and
after each step, inside and outside of `jax.jit`. A step equals that of one
device.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from tests.contracts import table, training

SPLIT = {
  'dense': {'bias': P('x'), 'kernel': P(None, 'x')},
  'norm': {'scale': P('x')},
}
STEPS = 3
# More than one part, without a remainder.
IN_PARTS = {
  'b_sam': {'micro_batches': 4},
  'lpf_sgd': {'micro_batches': 4},
  'm_sam': {'micro_batch_size': 4},
  'sparse_sam_fisher': {'num_samples': 40},
}


def _over(names):
  cases = [*((name, {}) for name in names), *IN_PARTS.items()]
  return pytest.mark.parametrize(
    ('name', 'changes'), cases, ids=[' '.join((x, *y)) for x, y in cases]
  )


# The scan of the second test requires equal types too, of every row.
EVERY_KIND, EVERY_ROW = _over(table.REPRESENTATIVES), _over(table.ROWS)


@pytest.fixture(autouse=True, scope='module')
def explicit_mesh():
  mesh = jax.make_mesh(
    (2, 2), ('data', 'x'), axis_types=(AxisType.Explicit,) * 2
  )
  with jax.set_mesh(mesh):
    yield


def start():
  return jax.tree.map(jax.device_put, training.params(), SPLIT)


def batches():
  """Returns batches of 48 examples, sharded over the axis 'data'."""
  parts = [[training.batch(6 * t + i) for i in range(6)] for t in range(STEPS)]
  whole = [jax.tree.map(lambda *x: np.concatenate(x), *p) for p in parts]
  stacked = jax.tree.map(lambda *x: np.stack(x), *whole)
  return jax.device_put(stacked, P(None, 'data'))


def build(name, changes, batches):
  row = table.ROWS[name]
  if 'batch_like' in row.parameters:
    like = jax.tree.map(lambda x: jnp.zeros_like(x[0]), batches)
    changes = {**changes, 'batch_like': like}
  return row.whole(**changes)


def types(tree):
  return jax.tree.map(jax.typeof, tree)


def assert_close(found, wanted):
  for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
    np.testing.assert_allclose(x, y, rtol=0, atol=1e-6)


@EVERY_KIND
def test_the_type_of_the_state_does_not_change(name, changes):
  tx, params = build(name, changes, batches()), start()
  given = training.functions(jax.tree.map(lambda x: x[0], batches()))
  grads = jax.grad(given['value_fn'])(params)
  state = tx.init(params)
  update = lambda g, s, p: tx.update(g, s, p, **given)
  eager, compiled = (f(grads, state, params) for f in (update, jax.jit(update)))
  assert types(jax.jit(tx.init)(params)) == types(state)
  assert types(eager) == types(compiled) == (types(params), types(state))
  assert_close(eager[0], compiled[0])


@EVERY_ROW
def test_steps_equal_those_of_one_device(name, changes):
  tx, params = build(name, changes, batches()), start()
  step = training.training_step(tx)

  @functools.partial(jax.jit, donate_argnums=0)
  def train(carry, batches):
    return jax.lax.scan(lambda c, b: (step(*c, b), None), carry, batches)[0]

  found, _ = train((params, tx.init(params)), batches())
  alone = jax.tree.map(np.asarray, batches())
  tx = build(name, changes, alone)
  wanted, state = training.start(tx)
  step = jax.jit(training.training_step(tx))
  for t in range(STEPS):
    batch = jax.tree.map(lambda x, t=t: x[t], alone)
    wanted, state = step(wanted, state, batch)
  assert_close(found, wanted)
