"""Operations of loops, against the same function without a loop."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import loop_operations

X = jax.ShapeDtypeStruct((64, 64), jnp.float32)
PRODUCT = 2 * 64**3


def repeated(length):
  def f(x):
    return jax.lax.scan(lambda c, _: (jnp.tanh(c @ x), None), x, length=length)[
      0
    ]

  return f


def count(f, *given):
  return loop_operations.count(jax.jit(f).lower(*given).compile())


def test_a_loop_counts_as_often_as_it_runs():
  compiled = jax.jit(repeated(20)).lower(X).compile()
  assert compiled.cost_analysis()['flops'] < 2 * PRODUCT
  found = loop_operations.count(compiled)
  assert found == pytest.approx(20 * PRODUCT, rel=1e-4)


def test_a_loop_in_a_loop_counts_as_often_as_it_runs():
  def f(x):
    return jax.lax.scan(lambda c, _: (repeated(5)(c), None), x, length=3)[0]

  assert count(f, X) == pytest.approx(15 * PRODUCT, rel=1e-4)


def test_the_most_expensive_branch_is_chosen_with_its_loops():
  """The loop runs 5 products, and its body has one; the other branch has 3."""

  def f(ascends, x):
    return jax.lax.cond(ascends, repeated(5), lambda x: x @ x @ x @ x, x)

  ascends = jax.ShapeDtypeStruct((), jnp.bool)
  assert count(f, ascends, X) == pytest.approx(5 * PRODUCT, rel=1e-4)


def test_without_a_loop_the_count_is_that_of_xla():
  compiled = jax.jit(lambda x: jnp.tanh(x @ x)).lower(X).compile()
  found = loop_operations.count(compiled)
  assert found == compiled.cost_analysis()['flops']


def test_a_loop_of_unknown_length_counts_once():
  def f(x):
    return jax.lax.while_loop(lambda c: jnp.sum(c) < 3, lambda c: c @ c, x)

  assert PRODUCT <= count(f, X) < 1.1 * PRODUCT
