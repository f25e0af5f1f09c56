"""Checks of every method: rule, golden values, identities.

Each function returns a test, which a module assigns to a name.
"""

import functools
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.conformance.reference import Recording, Replay
from tests.oracles import problems, sam, step
from tests.oracles.cases import cases, words
from tests.oracles.problems import NETWORK, QUARTIC

RHO = 0.1


class Run(NamedTuple):
  """The result of a run of the library.

  Attributes:
    path: the parameters after every step, as vectors.
    ascended: for each step, whether it took the perturbed gradient.
    state: final state of the optimizer.
  """

  path: np.ndarray
  ascended: np.ndarray
  state: Any


def run(tx, problem=NETWORK):
  """Takes all steps of a problem in one compiled function."""
  one = problem.training_step(tx)

  def body(carry, batch):
    carry = one(*carry, batch)
    return carry, (carry[0], problems.ascended(carry[1]))

  params = problem.params()
  carry, (path, ascended) = jax.jit(
    lambda *given: jax.lax.scan(body, given, problem.batches())
  )(params, optax.with_extra_args_support(tx).init(params))
  path = [
    problem.flat({name: leaf[t] for name, leaf in path.items()})
    for t in range(problem.steps)
  ]
  return Run(np.array(path), np.asarray(ascended), carry[1])


def _by(values, ids):
  return pytest.mark.parametrize('case', values, ids=ids)


def follows(found):
  """Returns a test that the library equals the rules on one device."""

  @pytest.mark.usefixtures('float64')
  @_by(found, [case.name for case in found])
  def test(case):
    batch = NETWORK.batch(0)
    ours = run(case.optimizer(NETWORK.base(), batch))
    rule = step.train(case.rule, NETWORK)
    tolerance = 1e-9 if case.tolerance == 1e-5 else case.tolerance
    np.testing.assert_allclose(ours.path, rule.path, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(ours.ascended, rule.ascended)

  return test


def follows_with_a_mask(case):
  """Returns the same test of one case with a mask."""

  @pytest.mark.usefixtures('float64')
  def test():
    mask = {name: name in ('bias', 'kernel') for name in NETWORK.shapes}
    kept = NETWORK.flat(
      {name: np.full(NETWORK.shapes[name], x) for name, x in mask.items()}
    )
    tx = case.optimizer(NETWORK.base(), NETWORK.batch(0), mask=mask)
    rule = step.train(case.rule, NETWORK, kept=kept)
    np.testing.assert_allclose(run(tx).path, rule.path, rtol=0, atol=1e-9)

  return test


def assert_golden(path, expected):
  w = path[-1]
  found = (w[0], w[4], w[11], np.linalg.norm(w))
  np.testing.assert_allclose(found, expected, rtol=0, atol=6e-9)


def given_draws(monkeypatch):
  """Replaces random normal entries by those of the golden values.

  They depend on the step and the sample, with which a key is folded.
  """

  def draw(t, sample=None):
    t = t if sample is not None else t - 1  # the key of the next step
    t, i = jnp.asarray(t, float), jnp.arange(12.0)
    first = jnp.sin(7 * t + i)
    return (
      first
      if sample is None
      else jnp.where(jnp.asarray(sample) == 0, first, jnp.cos(5 * t + i))
    )

  def fold_in(key, number):
    return (*key, number) if isinstance(key, tuple) else (number,)

  def normal(key, shape, dtype):
    *numbers, leaf = key
    where = QUARTIC.slices[list(QUARTIC.shapes)[leaf]]
    return draw(*numbers)[where].reshape(shape).astype(dtype)

  monkeypatch.setattr(jax.random, 'fold_in', fold_in)
  monkeypatch.setattr(jax.random, 'normal', normal)
  given = lambda *args: np.asarray(draw(*args[2:]))  # without step and key
  monkeypatch.setattr(step.Step, 'normal', given)


def golden(function, rule, *rows, draws=False):
  """Returns a test of three recorded steps of the library and of the rule.

  The numbers come from independent programs (those of the authors for SAM,
  ASAM, GSAM, WSAM, ZSharp by the tensor, CR-SAM, Eigen-SAM and the mask) or,
  for the rest, from transcriptions that share no code with this one. They have
  eight decimals.

  Args:
    function: builds the method.
    rule: the method in NumPy.
    *rows: arguments, followed by `w[0]`, `w[4]`, `w[11]` and `norm(w)`.
    draws: whether the method draws random points, which are replaced.
  """
  found = [(cases(function, rule, row)[0], row, w) for row, w in rows]

  @pytest.mark.usefixtures('float64')
  @_by(found, [' '.join(words(row)) or 'defaults' for _, row, _ in found])
  def test(case, monkeypatch):
    case, _, expected = case
    if draws:
      given_draws(monkeypatch)
    tx = case.optimizer(QUARTIC.base(), QUARTIC.batch(0))
    assert_golden(run(tx, QUARTIC).path, expected)
    assert_golden(step.train(case.rule, QUARTIC).path, expected)

  return test


@functools.cache
def expected_path(rho):
  """Returns the parameters of SAM, or of the base optimizer for None."""
  if rho is None:
    with jax.enable_x64(True):
      return run(NETWORK.base()).path
  return step.train(functools.partial(sam.sam, rho=rho), NETWORK).path


def _is(function, rho, rows, tolerance):
  @pytest.mark.usefixtures('float64')
  @pytest.mark.filterwarnings('ignore:lambda_.*no ascent steps')
  @_by(rows, [' '.join(words(row)) for row in rows])
  def test(case):
    if 'rho' in inspect.signature(function).parameters:
      case = {'rho': RHO, **case}
    tx = optax.chain(function(**case), NETWORK.base())
    path = run(tx).path
    np.testing.assert_allclose(path, expected_path(rho), rtol=0, atol=tolerance)

  return test


def is_sam(function, *rows):
  """Returns a test that a method with these arguments is SAM."""
  return _is(function, RHO, rows, 1e-10)


def is_base(function, *rows, tolerance=0.0):
  """Returns a test that a method with these arguments is the base optimizer."""
  return _is(function, None, rows, tolerance)


def equal(function, arguments, right):
  """Raises unless a method equals another optimizer."""
  (case,) = cases(function, sam.sam, arguments)
  equal_optimizers(case.optimizer(NETWORK.base(), NETWORK.batch(0)), right)


def equal_optimizers(left, right):
  left, right = (run(tx).path for tx in (left, right))
  np.testing.assert_allclose(left, right, rtol=0, atol=1e-10)


def leaf_without_gradient(function, **arguments):
  """Returns a test that norms of individual leaves may be 0."""

  @pytest.mark.usefixtures('float64')
  def test():
    method = function(**arguments)
    params = {'a': jnp.array([1.0, 2.0]), 'b': jnp.array([3.0])}
    gradient = {'a': jnp.array([0.5, -1.0]), 'b': jnp.zeros(1)}
    grad_fn = lambda p: {'a': p['a'] ** 3, 'b': jnp.zeros(1)}
    update = jax.jit(
      lambda state: method.update(gradient, state, params, grad_fn=grad_fn)
    )
    state = method.init(params)
    for _ in range(2):
      direction, state = update(state)
      assert not direction['b'].any()
      assert np.isfinite(direction['a']).all()
      assert direction['a'].any()

  return test


def perturbed(method, gradient, params, **given):
  """Returns w + epsilon, from a gradient function that returns its input."""
  given = given or {'grad_fn': lambda p: p}
  return method.update(gradient, method.init(params), params, **given)[0]


def assert_zero_gradient_is_base(name, method):
  """Raises unless a zero gradient gives no perturbation."""
  theirs = Recording(name)
  assert np.isnan(theirs['g_final']).any() or np.isnan(theirs['w']).any()
  steps = list(Replay(theirs, method, watched=True).run())
  assert not steps[0].epsilon.any()
  assert not steps[0].direction.any()
  assert np.isfinite([step.params for step in steps]).all()


def decisions(tx, gradients, state=None):
  """Returns for which unperturbed gradients a method takes an ascent step."""
  w = jnp.zeros(gradients.shape[1:])
  state = tx.init(w) if state is None else state

  @jax.jit
  def decide(gradients):
    def step(state, gradient):
      _, state = tx.update(gradient, state, w, grad_fn=lambda _: w)
      return state, problems.ascended(state)

    return jax.lax.scan(step, state, gradients)[1]

  return np.asarray(decide(gradients))


def square(params, batch):
  return jnp.square(params - batch)


def first_direction(method, batch=(1.0, -4.0, 2.0, 3.0), **given):
  """Returns the direction of the first step for squared differences."""
  batch, params = jnp.array(batch), jnp.float32(0)
  return method.update(
    jax.grad(lambda p: jnp.mean(square(p, batch)))(params),
    method.init(params),
    params,
    per_example_value_fn=square,
    batch=batch,
    **given,
  )[0]


def losses_of_the_clean_pass(function, **arguments):
  """Returns a test that given losses are not recomputed."""

  def test():
    method = function(**arguments)
    losses = np.array([1.0, 16.0, 4.0, 9.0], np.float32)
    expected = first_direction(method)
    assert first_direction(method, losses=losses) == expected
    # The given losses rank the examples; other losses select others.
    assert first_direction(method, losses=np.roll(losses, 1)) != expected

  return test


def with_fields(state, **values):
  """Returns a state with replaced fields."""
  if hasattr(state, '_asdict'):
    fields = state._asdict().items()
    return type(state)(
      **{
        k: values[k] if k in values else with_fields(v, **values)
        for k, v in fields
      }
    )
  if isinstance(state, tuple):
    return tuple(with_fields(part, **values) for part in state)
  return state
