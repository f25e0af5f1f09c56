"""Every method minimizes, inside `jax.lax.scan`.

The gradient at `w + epsilon` does not vanish at a minimum, so with a constant
radius every method stays at a distance proportional to the radius. Here a
schedule decreases the radius to zero, so that the base optimizer reaches the
minimum. The learning rate reaches zero last, for the method that normalizes the
unperturbed gradient.

All examples have the same minimum, also for methods that select examples.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_sam
from tests.contracts import table, training

# Optax's own transformations promote dtypes implicitly.
STRICT = False


@table.every_kind(table.in_chain)
def test_every_method_reaches_the_minimum(name):
  steps = 600
  batch = jnp.asarray(np.sin(np.arange(1, 25)).reshape(8, 3))

  def losses(params, batch):
    error = (params - jnp.array([1.0, -2.0, 0.5]))[None] @ batch.T
    return jnp.square(error)[0]

  decay = optax.cosine_decay_schedule(0.2, steps // 3)
  rates = [optax.constant_schedule(0.2), decay]
  rate = optax.join_schedules(rates, [2 * steps // 3])
  rho = optax.cosine_decay_schedule(0.1, steps // 3)
  tx = table.ROWS[name].whole(rho, base=lambda: optax.sgd(rate))
  step = training.training_step(tx, losses)

  @jax.jit
  def run(state):
    return jax.lax.scan(
      lambda state, _: (step(*state, batch), None), state, length=steps
    )[0]

  start = jnp.zeros(3)
  params, opt_state = run((start, tx.init(start)))
  assert int(optax_sam.metrics(opt_state)['step_count']) == steps
  assert float(jnp.mean(losses(start, batch))) > 0.5
  assert float(jnp.mean(losses(params, batch))) < 1e-8


@table.every_method(lambda row: row.place in ('wraps', 'replaces'))
def test_every_method_reaches_a_wide_minimum(name):
  """The radius is small. The noise of b_sam remains near the minimum."""
  target = {'dense': jnp.array([1.0, -2.0]), 'norm': jnp.array([0.5])}

  def losses(params, batch):
    error = jax.tree.map(lambda x, y: jnp.sum((x - y) ** 2), params, target)
    return sum(jax.tree.leaves(error)) * batch

  row, batch = table.METHODS[name], jnp.ones(4)
  changes = {'batch_like': batch, 'noise': 0.0, 'prior_precision': 0.0}
  changes = {key: x for key, x in changes.items() if key in row.parameters}
  tx = row.whole(1e-3, base=lambda: optax.sgd(0.1), **changes)
  step = training.training_step(tx, losses)

  @jax.jit
  def run(state):
    return jax.lax.scan(
      lambda state, _: (step(*state, batch), None), state, length=300
    )[0]

  params = jax.tree.map(jnp.zeros_like, target)
  params, state = run((params, tx.init(params)))
  if name == 'entropy_sgd':
    params = optax_sam.outer_params(params, state)
  far = 0.1 if name == 'b_sam' else 5e-3
  for key, leaf in params.items():
    np.testing.assert_allclose(leaf, target[key], atol=far)
