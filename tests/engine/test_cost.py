"""Cost of one compiled step, counted in floating-point operations.

XLA counts a conditional as its costlier branch. So a method that skips must add
exactly one gradient, in a branch, to the unperturbed gradient.
"""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest

import optax_sam
from tests import compiling

SGD = optax.sgd(0.1, momentum=0.9)

# So many that costs per parameter, such as noise, are negligible.
_EXAMPLES = 4096


def _losses(params, batch):
  hidden = jnp.tanh(batch['x'] @ params['in'])
  return jnp.square(hidden @ params['out'] - batch['y'])


@functools.cache
def _flops(*transformations, examples=_EXAMPLES, by_example=False):
  """Returns the operations of a step that does not return the loss."""
  tx = optax.with_extra_args_support(optax.chain(*transformations))

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
  'transformations',
  [
    (optax_sam.momentum_sam(), SGD),
    (_lpf_sgd(1), SGD),
    (optax_sam.entropy_sgd(key=0),),
    (SGD, optax_sam.anti_pgd(0.1, key=0)),
    (SGD, optax_sam.swa(1)),
  ],
  ids=['momentum_sam', 'lpf_sgd', 'entropy_sgd', 'anti_pgd', 'swa'],
)
def test_methods_of_one_gradient_cost_one(transformations):
  plain = _flops(SGD)
  assert _flops(*transformations) < 1.02 * plain
  # The measure detects a perturbed gradient.
  assert _flops(optax_sam.sam(), SGD) > 1.9 * plain


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


def _relative(method):
  """Returns the cost in gradients; here a forward pass costs half of one."""
  return _flops(method, SGD, by_example=True) / _flops(SGD)


@pytest.mark.parametrize(
  'method',
  [
    optax_sam.sam(),
    optax_sam.asam(),
    optax_sam.friendly_sam(),
    # An upper bound: XLA counts the costlier branch.
    optax_sam.ss_sam(key=0),
    optax_sam.look_sam(),
    optax_sam.ae_sam(total_steps=100),
    optax_sam.ae_look_sam(total_steps=100),
  ],
)
def test_sam_and_methods_that_skip_cost_at_most_two_gradients(method):
  assert 1.9 < _relative(method) < 2.05


@pytest.mark.parametrize('size', [1 / 3, 1 / 4])
def test_k_sam_costs_the_selected_examples_and_the_ranking(size):
  """XLA removes the unperturbed gradient; its forward pass ranks examples."""
  found = _relative(optax_sam.k_sam(ascent=size, descent=size))
  assert found == pytest.approx(1 / 2 + 2 * size, abs=0.03)
