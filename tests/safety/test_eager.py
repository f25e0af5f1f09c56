"""Steps outside of `jax.jit`, and missing arguments of `update`."""

import jax
import jax.numpy as jnp
import optax
import pytest

from tests.contracts import table, training

LOSS, LOSSES = jax.jit(training.loss), jax.jit(training.losses)
# The possible decisions of each method that needs a function.
DECISIONS = [
  pytest.param(row, ascend, id=f'{row.name}-{ascend}')
  for row in table.METHODS.values()
  for ascend in ((None, False, True) if row.place == 'chain' else (None,))
  if row.place != 'after' and row.method.needs != ''
]


@pytest.mark.parametrize(('row', 'ascend'), DECISIONS)
def test_a_missing_function_raises_for_any_decision(row, ascend):
  """Skipped steps and missing examples raise too."""
  tx, given = row.alone(), {} if ascend is None else {'ascend': ascend}
  w, batch = training.params(), training.batch()
  g, functions = training.gradient(w, batch), training.functions(batch)
  state = tx.init(w)
  if row.method.needs == 'examples':
    given['value_fn'] = functions['value_fn']
  for _ in range(2):
    with pytest.raises(ValueError, match=r'tx.update\('):
      tx.update(g, state, w, **given)
    with pytest.raises(ValueError, match=r'tx.update\('):
      jax.eval_shape(lambda g, s: tx.update(g, s, w, **given), g, state)
    state = tx.update(g, state, w, **functions)[1]


@pytest.fixture
def compiles():
  """Returns a list of compilations."""
  found = []

  def listen(event, _, **kwargs):
    if 'backend_compile' in event:
      found.append(kwargs)

  jax.monitoring.register_event_duration_secs_listener(listen)
  jax.jit(lambda x: x + 1)(1.0)
  assert found
  yield found
  jax.monitoring.unregister_event_duration_listener(listen)


@table.every_kind()
def test_eager_steps_compile_nothing_new(name, compiles):
  """After the third step, if the user's functions are jitted once."""
  row = table.ROWS[name]
  many = {'num_samples': 40} if row.name == 'sparse_sam_fisher' else {}
  tx = row.whole(**many)
  params, state = training.params(), tx.init(training.params())
  for t in range(8):
    if t == 4:
      compiles.clear()
    batch = jax.tree.map(
      lambda *x: jnp.concatenate(x), *[training.batch(t)] * (5 if many else 1)
    )
    u, state = tx.update(
      training.gradient(params, batch),
      state,
      params,
      value_fn=lambda w, batch=batch: LOSS(w, batch),
      per_example_value_fn=LOSSES,
      batch=batch,
    )
    params = optax.apply_updates(params, u)
  assert not compiles
