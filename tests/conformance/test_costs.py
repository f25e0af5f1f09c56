"""What the methods that don't cost two gradients cost; one in another form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from tests import compiling

SGD = optax.sgd(0.1, momentum=0.9)

# So many that what counts by the parameter, as noise does, is next to nothing.
_EXAMPLES = 4096


def _losses(params, batch):
  hidden = jnp.tanh(batch['x'] @ params['in'])
  return jnp.square(hidden @ params['out'] - batch['y'])


def _flops(*elements, examples=_EXAMPLES, by_example=False):
  """Returns the operations of a step that asks for no clean loss."""
  tx = optax.with_extra_args_support(optax.chain(*elements))

  def step(params, opt_state, batch):
    value_fn = lambda p: jnp.mean(_losses(p, batch))
    given = {'value_fn': value_fn}
    if by_example:
      given = {'per_example_value_fn': _losses, 'batch': batch}
    grads = jax.grad(value_fn)(params)
    updates, opt_state = tx.update(grads, opt_state, params, **given)
    return optax.apply_updates(params, updates), opt_state

  def arguments():
    params = {'in': jnp.zeros((64, 64)), 'out': jnp.zeros(64)}
    batch = {'x': jnp.zeros((examples, 64)), 'y': jnp.zeros(examples)}
    return params, tx.init(params), batch

  program = jax.jit(step, **compiling.READ_AS_USERS)
  compiled = program.lower(*jax.eval_shape(arguments)).compile()
  return compiled.cost_analysis()['flops']


def _lpf_sgd(micro_batches):
  return optax_sam.lpf_sgd(total_steps=9, micro_batches=micro_batches, key=0)


@pytest.mark.parametrize(
  'elements',
  [
    (optax_sam.momentum_sam(), SGD),
    (_lpf_sgd(1), SGD),
    (optax_sam.entropy_sgd(key=0),),
    (SGD, optax_sam.anti_pgd(0.1, key=0)),
    (SGD, optax_sam.swa(1)),
  ],
  ids=['momentum_sam', 'lpf_sgd', 'entropy_sgd', 'anti_pgd', 'swa'],
)
def test_methods_of_one_gradient_cost_one(elements):
  plain = _flops(SGD)
  assert _flops(*elements) < 1.02 * plain
  # The measure sees a second one.
  assert _flops(optax_sam.sam(), SGD) > 1.9 * plain


def test_entropy_sgd_draws_its_noise_once():
  """What it adds counts by the parameter, not by the example."""
  added = _flops(optax_sam.entropy_sgd(key=0)) - _flops(SGD)
  # A normal number takes about 90 operations, the walk about 40.
  assert added < 150 * (64 * 64 + 64)


def test_lpf_sgd_costs_one_gradient_and_the_noise_of_each_part():
  part = _flops(_lpf_sgd(1), SGD, examples=_EXAMPLES // 8, by_example=True)
  # XLA counts what a loop does once.
  counted = _flops(_lpf_sgd(8), SGD, by_example=True)
  np.testing.assert_allclose(counted, part, rtol=0.02)
  added = 8 * part - _flops(SGD)
  assert 0 < added < 8 * 110 * (64 * 64 + 64)


@pytest.mark.parametrize(
  ('method', 'gradients'),
  [
    (optax_sam.cr_sam(), 3),
    (optax_sam.frob_sam(key=0), 3),
    (optax_sam.frob_sam(num_samples=4, key=0), 5),
  ],
)
def test_further_points_cost_a_gradient_each(method, gradients):
  found = _flops(method, SGD) / _flops(SGD)
  assert gradients - 0.1 < found < 1.02 * gradients


def test_a_step_whose_branch_the_caller_refuses_is_the_base_optimizer():
  tx, w = optax_sam.momentum_sam(0.5), jnp.array([3.0, 4.0])
  _, state = tx.update(w, tx.init(w), w, grad_fn=lambda p: p)
  u, after = tx.update(2 * w, state, w, grad_fn=lambda p: p, ascend=False)
  np.testing.assert_array_equal(u, 2 * w)
  np.testing.assert_array_equal(
    after.descent.direction, state.descent.direction
  )
  assert int(after.count) == 2


@pytest.mark.usefixtures('float64')
def test_perturbed_weights_could_be_stored_instead():
  """The authors' form: what is stored is where the gradient is taken.

  With plain momentum `m` of decay b, at stored weights `x = w + epsilon`:
  undo the perturbation, step, perturb along the new momentum.
  """
  rho, decay, rate = 0.3, 0.9, 0.1
  curvature = np.linspace(0.5, 3, 5)
  gradient = lambda w: curvature * w + np.cos(w)
  tx = optax.chain(
    optax_sam.momentum_sam(rho, decay=decay), optax.sgd(rate, momentum=decay)
  )

  @jax.jit
  def step(w, state):
    updates, state = tx.update(
      w, state, w, grad_fn=lambda w: curvature * w + jnp.cos(w)
    )
    return optax.apply_updates(w, updates), state

  w = jnp.asarray(np.sin(np.arange(1.0, 6.0)))
  stored, m, epsilon = np.array(w), np.zeros(5), np.zeros(5)
  state = tx.init(w)
  for _ in range(6):
    w, state = step(w, state)
    m = decay * m + gradient(stored)
    epsilon_next = -rho * m / np.linalg.norm(m)
    stored = stored - epsilon - rate * m + epsilon_next
    epsilon = epsilon_next
    np.testing.assert_allclose(w, stored - epsilon, rtol=0, atol=1e-12)
