"""Operations of SAM on some layers, on the networks of the speed table."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest

import optax_sam
from benchmarks import problems
from tests import compiling

# One process compiles the step of SGD once for all tests.
pytestmark = pytest.mark.xdist_group('layer operations')
STRICT = False


@functools.cache
def _flops(name, method=None, *, reports_loss=False):
  """Returns XLA's operations of a step; SGD's without a method."""
  problem = problems.build(name)
  params, statistics = jax.eval_shape(problem.init)
  batch = problem.batches[0]
  base = optax.sgd(0.01, momentum=0.9)
  method = optax.identity() if method is None else method
  tx = optax.with_extra_args_support(optax.chain(method, base))

  def step(params, state, statistics):
    losses = lambda p, b: problem.losses(p, statistics, b)[0]
    value_fn = lambda p: jnp.mean(losses(p, batch))
    value, grads = jax.value_and_grad(value_fn)(params)
    updates, state = tx.update(
      grads,
      state,
      params,
      value_fn=value_fn,
      per_example_value_fn=losses,
      batch=batch,
    )
    params = optax.apply_updates(params, updates)
    return params, state, value if reports_loss else None

  state = jax.eval_shape(tx.init, params)
  program = jax.jit(step, **compiling.READ_AS_USERS)
  compiled = program.lower(params, state, statistics).compile()
  return compiled.cost_analysis()['flops']


HALF = optax_sam.sparse_sam_layers()
QUARTER = optax_sam.sparse_sam_layers(fraction=0.25)
# Each kind of network, and each size.
every_network = pytest.mark.parametrize(
  'name', ['transformer, small', 'conv, large']
)


@every_network
def test_the_last_half_costs_at_most_1_6_gradients(name):
  """This also holds if the step returns the unperturbed loss."""
  assert _flops(name, HALF, reports_loss=True) < 1.6 * _flops(name)


def test_the_cost_does_not_depend_on_the_report_of_the_loss():
  name = 'transformer, small'
  reported = _flops(name, HALF, reports_loss=True)
  assert _flops(name, HALF) == pytest.approx(reported, rel=1e-3)


@every_network
def test_the_last_half_with_a_quarter_batch_costs_at_most_1_2(name):
  plain = _flops(name)
  assert plain < _flops(name, QUARTER) < 1.2 * plain


def test_a_mask_alone_costs_more():
  """The measure detects a second forward pass of the unperturbed half."""
  name = 'transformer, small'
  problem = problems.build(name)
  params, statistics = problem.init()
  losses = lambda p, b: problem.losses(p, statistics, b)[0]
  mask = optax_sam.choose_leaves(
    losses, params, problem.batches[0], 0.5, by='depth'
  )
  assert _flops(name, optax_sam.sam(mask=mask)) > 1.6 * _flops(name)
