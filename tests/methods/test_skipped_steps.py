"""Steps without a perturbed gradient, for all methods that skip."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest

import optax_sam
from optax_sam.catalog import METHODS
from tests import traces
from tests.contracts import comparisons
from tests.oracles import step
from tests.oracles.cases import all_cases
from tests.oracles.problems import NETWORK


def _marked(case):
  group = pytest.mark.xdist_group(case.family)
  return pytest.param(case, id=case.name, marks=group)


# The first case of each method that skips some steps.
CASES = [
  _marked(case)
  for case in all_cases().values()
  if case.name in ('everything', 'unpublished')
  or (case.name in METHODS and METHODS[case.name].group == 'some steps')
]


def test_the_methods_that_skip_are_known():
  found = {
    case.name
    for case in all_cases().values()
    if ' ' not in case.name and not all(step.train(case.rule, NETWORK).ascended)
  }
  assert found == {case.id for case in CASES}


# One of them ranks examples, and so computes losses at every step.
@pytest.mark.parametrize('case', [x for x in CASES if x.id != 'everything'])
def test_a_skipped_step_computes_no_gradient(case):
  method = case.method(NETWORK.base(), NETWORK.batch(0))
  calls = []

  def grad_fn(p):
    jax.debug.callback(lambda: calls.append(1))
    return p

  def update(gradient, state, params):
    return method.update(gradient, state, params, grad_fn=grad_fn)[1]

  update = jax.jit(update)
  params, noted = NETWORK.params(), []
  state = method.init(params)
  for t in range(NETWORK.steps):
    calls.clear()
    gradient = jax.tree.map(lambda w, t=t: w * (1 + jnp.sin(2.0 * t)), params)
    state = update(gradient, state, params)
    jax.effects_barrier()
    noted.append((len(calls) > 0, bool(optax_sam.metrics(state)['ascended'])))
  assert len(set(noted)) == 2
  assert all(called == ascended for called, ascended in noted)


# Other methods take an ascent step in every step, unless `ascend=False`.
REFRESHES = ('sparse_sam_dynamic', 'eigen_sam', 'everything')
OTHERS = [
  _marked(all_cases()[name])
  for name in ('sam', 'friendly_sam', 'gsam', 'k_sam', *REFRESHES[:2])
]


@pytest.mark.parametrize('case', CASES + OTHERS)
def test_two_functions_for_the_branches_equal_the_policy(case):
  """Functions compiled for one branch each take the steps of the policy."""
  method = case.method(NETWORK.base(), NETWORK.batch(0))
  params = NETWORK.params()
  state = method.init(params)

  def update(params, state, batch, ascend=None):
    mean = lambda p: jnp.mean(NETWORK.jax_losses(p, batch))
    given = {'per_example_value_fn': NETWORK.jax_losses, 'batch': batch}
    return method.update(
      jax.grad(mean)(params), state, params, **given, ascend=ascend
    )

  batches = jax.tree.map(lambda x: x[:4], NETWORK.batches())
  first = jax.tree.map(lambda x: x[0], batches)
  programs = {}
  for ascend in (None, False, True):
    traced = jax.jit(functools.partial(update, ascend=ascend)).trace(
      params, state, first
    )
    programs[ascend] = traced.lower().compile()
    skips = ascend is None and case.name in {x.id for x in CASES}
    branches = skips + (case.name in REFRESHES[1:])  # by other gradients
    assert traces.conditional_gradients(traced.jaxpr.jaxpr) == branches
  for t in range(4):
    batch = jax.tree.map(lambda x, t=t: x[t], batches)
    found = {x: programs[x](params, state, batch) for x in (False, True)}
    updates, state = programs[None](params, state, batch)
    decided = bool(optax_sam.metrics(state)['decided'])
    same = comparisons.without_keys((updates, state))
    # LookSAM normalizes a small difference, which amplifies rounding.
    taken = comparisons.without_keys(found[decided])
    comparisons.assert_close(taken, same, 1e-5)
    # The statistics are updated in the other branch too.
    _, other = found[not decided]
    told = optax_sam.metrics(other)
    assert bool(told['ascended']) != bool(told['decided']) == decided
    for choice in ('policy', 'perturbation', 'step_count'):
      states = (getattr(other, choice), getattr(state, choice))
      comparisons.assert_close(*map(comparisons.without_keys, states))
    params = optax.apply_updates(params, optax.tree.scale(-0.05, updates))


def test_ascend_that_is_not_a_bool_raises():
  tx, w = optax_sam.sam(), jnp.ones(3)
  with pytest.raises(ValueError, match=r'^ascend must be one of None, True'):
    tx.update(w, tx.init(w), w, grad_fn=lambda p: p, ascend='yes')
