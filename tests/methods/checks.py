"""What every method is checked by: rule, golden values, identities.

Each function returns a test for a module to name.
"""

import functools
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.oracles import problems, sam, step
from tests.oracles.cases import cases
from tests.oracles.problems import NETWORK, QUARTIC

RHO = 0.1


class Run(NamedTuple):
  """What the library leaves behind.

  Attributes:
    path: the parameters after every step, as vectors.
    ascended: whether each of the steps took the second gradient.
    state: state of the optimizer in the end.
  """

  path: np.ndarray
  ascended: np.ndarray
  state: Any


def run(tx, problem=NETWORK):
  """Takes all steps of a problem, as one program."""
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
  """Returns a test of the library against the rules, on one device."""

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


def assert_golden(path, expected):
  w = path[-1]
  found = (w[0], w[4], w[11], np.linalg.norm(w))
  np.testing.assert_allclose(found, expected, rtol=0, atol=6e-9)


def golden(function, rule, *rows):
  """Returns a test of three recorded steps, of the library and of the rule.

  The numbers come from independent programs (those of the authors for SAM,
  ASAM, GSAM, WSAM, ZSharp by the tensor, CR-SAM, Eigen-SAM and the mask) or,
  for the rest, from transcriptions that share no code with this one. They have
  eight decimals.

  Args:
    function: builds the method.
    rule: the method in NumPy.
    *rows: arguments, and then `w[0]`, `w[4]`, `w[11]` and `norm(w)`.
  """
  found = [(cases(function, rule, row)[0], row, w) for row, w in rows]

  @pytest.mark.usefixtures('float64')
  @_by(found, [str(row) for _, row, _ in found])
  def test(case):
    case, _, expected = case
    tx = case.optimizer(QUARTIC.base(), QUARTIC.batch(0))
    assert_golden(run(tx, QUARTIC).path, expected)
    assert_golden(step.train(case.rule, QUARTIC).path, expected)

  return test


@functools.cache
def _expected(rho):
  if rho is None:
    with jax.enable_x64(True):
      return run(NETWORK.base()).path
  return step.train(functools.partial(sam.sam, rho=rho), NETWORK).path


def _is(function, rho, rows, tolerance):
  @pytest.mark.usefixtures('float64')
  @pytest.mark.filterwarnings('ignore:lambda_.*no step ascends')
  @_by(rows, [str(row) for row in rows])
  def test(case):
    if 'rho' in inspect.signature(function).parameters:
      case = {'rho': RHO, **case}
    tx = optax.chain(function(**case), NETWORK.base())
    path = run(tx).path
    np.testing.assert_allclose(path, _expected(rho), rtol=0, atol=tolerance)

  return test


def is_sam(function, *rows):
  """Returns a test that a method with these arguments is SAM."""
  return _is(function, RHO, rows, 1e-10)


def is_base(function, *rows, tolerance=0.0):
  """Returns a test that a method with these arguments is the base optimizer."""
  return _is(function, None, rows, tolerance)
