"""Every method minimizes, inside `jax.lax.scan`.

The gradient at `w + epsilon` doesn't vanish at a minimum, so with a constant
radius every method circles around it at a distance that is proportional to
the radius. The radius goes to zero by a schedule here; then what remains is
the base optimizer, and the minimum is reached. Rosenbrock's valley is narrow,
its curvature 1000 across, so the radius starts small there. The learning rate
goes to zero last, for the method whose clean gradient has unit length.

All examples of both problems have the same minimum, so that those which pick
examples have it too.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from tests.contracts import table, training

# Optax's own transformations promote dtypes implicitly.
STRICT = False

# It resists the curvature across the valley, whatever the radius is.
_SETTINGS = {'frob_sam': {'penalty': 1e-4}}


def _parabola(params, batch):
  """Returns squares of linear functions, a well-posed problem in three."""
  error = (params - jnp.array([1.0, -2.0, 0.5]))[None] @ batch['directions'].T
  return jnp.square(error)[0]


def _rosenbrock(params, batch):
  """Returns multiples of Rosenbrock's function, its minimum at (1, 1)."""
  x, y = params
  return batch['weights'] * ((1 - x) ** 2 + 100 * (y - x**2) ** 2)


def _learning_rate(peak, steps):
  late = 2 * steps // 3
  decay = optax.cosine_decay_schedule(peak, steps - late)
  return optax.join_schedules([optax.constant_schedule(peak), decay], [late])


_PARABOLA = (
  _parabola,
  {'directions': jnp.asarray(np.sin(np.arange(1, 25)).reshape(8, 3))},
  jnp.zeros(3),
  0.1,
  optax.sgd(_learning_rate(0.2, 600)),
  600,
)
_ROSENBROCK = (
  _rosenbrock,
  {'weights': jnp.linspace(0.5, 1.5, 8)},
  jnp.array([-1.0, 1.0]),
  0.01,
  optax.adam(_learning_rate(0.05, 6000)),
  6000,
)


@table.every_kind(table.in_chain)
@pytest.mark.parametrize(
  'problem', [_PARABOLA, _ROSENBROCK], ids=['parabola', 'rosenbrock']
)
def test_reaches_the_minimum(name, problem):
  losses, batch, start, radius, base, steps = problem
  rho = optax.cosine_decay_schedule(radius, steps // 3)
  changes = _SETTINGS.get(name, {})
  tx = table.ROWS[name].whole(rho, base=lambda: base, **changes)
  step = training.training_step(tx, losses)

  @jax.jit
  def run(state):
    return jax.lax.scan(
      lambda state, _: (step(*state, batch), None), state, length=steps
    )[0]

  params, opt_state = run((start, tx.init(start)))
  assert int(optax_sam.metrics(opt_state)['count']) == steps
  assert float(jnp.mean(losses(start, batch))) > 0.5
  assert float(jnp.mean(losses(params, batch))) < 1e-8


@table.every_method(lambda row: row.place in ('wraps', 'replaces'))
def test_reaches_a_minimum_that_is_wide(name):
  """With a small radius; for b_sam, whose noise stays, a distance off."""
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
