"""The order in which a loss reads its parameters, as a measure of depth."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.extend import core

# The leaves that a value is a function of; None if it also depends on data.
_Sources = frozenset[int] | None


def read_order(
  function: Callable[[optax.Params], Any], params: optax.Params
) -> list[int]:
  """Returns the positions of the leaves in the order of their first use.

  A leaf is used where it meets data, which are the arrays that `function`
  closes over. Until then it may be cast, reshaped or joined to other leaves.
  Leaves that are never used come first.
  """
  jaxpr = jax.make_jaxpr(function)(params).jaxpr
  order: dict[int, None] = {}
  given: list[_Sources] = [frozenset([i]) for i in range(len(jaxpr.invars))]
  _walk(jaxpr, given, order)
  return [*(i for i in range(len(given)) if i not in order), *order]


def _walk(
  jaxpr: Any, given: list[_Sources], order: dict[int, None]
) -> list[_Sources]:
  """Adds the leaves that are used to `order`; returns sources of results."""
  constant = lambda x: frozenset() if jnp.ndim(x) == 0 else None
  sources = {x: constant(x.aval) for x in jaxpr.constvars}
  sources.update(zip(jaxpr.invars, given, strict=True))
  of = lambda x: constant(x.val) if isinstance(x, core.Literal) else sources[x]
  for equation in jaxpr.eqns:
    read, results = [of(x) for x in equation.invars], None
    for inner in called_by(equation):
      # The first operands of a branch or a loop may belong to another function.
      taken = read[max(0, len(read) - len(inner.jaxpr.invars)) :]
      if len(taken) == len(inner.jaxpr.invars):
        results = _walk(inner.jaxpr, taken, order)
    if results is None or len(results) != len(equation.outvars):
      leaves = frozenset().union(*(x for x in read if x is not None))
      if None in read:
        order.update(dict.fromkeys(sorted(leaves)))
      results = [None if None in read else leaves] * len(equation.outvars)
    sources.update(zip(equation.outvars, results, strict=True))
  return [of(x) for x in jaxpr.outvars]


def called_by(equation: Any) -> Iterator[core.ClosedJaxpr]:
  """Returns the functions that an equation calls."""
  kinds = (core.Jaxpr, core.ClosedJaxpr)
  params = list(equation.params.values())
  for x in jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, kinds)):
    if isinstance(x, kinds):
      yield x if isinstance(x, core.ClosedJaxpr) else core.ClosedJaxpr(x, ())
