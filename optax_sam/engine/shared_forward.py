"""The perturbed loss, with the part before all perturbed leaves computed once.

XLA merges two forward passes only if both are the same program, and
differentiation makes them differ. So the part of the perturbed loss that no
perturbed leaf enters is computed as a plain forward pass, which XLA merges with
that of the unperturbed loss. It is differentiated from the stored results of
its expensive operations; the others are computed again.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.extend import core

from optax_sam.engine import devices
from optax_sam.engine.loss_view import LossView
from optax_sam.engine.read_order import called_by
from optax_sam.engine.selection import Selection

_EXPENSIVE = (
  *('dot_general', 'ragged_dot_general', 'conv_general_dilated', 'fft', 'sort'),
  *('cholesky', 'eigh', 'lu', 'qr', 'svd', 'triangular_solve'),
  *('pallas_call', 'ffi_call'),
)
_INLINED = ('jit', 'pjit', 'closed_call')


def share_forward(selection: Selection) -> Selection:
  """Shares a part of the forward pass; the gradients are those of `selection`.

  Without `jax.jit`, with `grad_fn`, and for a loss with side effects nothing is
  shared.
  """

  def select(view: LossView, params: optax.Params, *of_step: Any) -> Any:
    selected = selection.select(view, params, *of_step)
    descent = lambda point: _shared(selected.descent(point), params)
    return selected._replace(descent=descent)

  return selection._replace(select=select)


def _shared(view: LossView, params: optax.Params) -> LossView:
  """Returns a view with the same loss at perturbed `params`."""
  local = devices.as_local(params, view.axis_name)
  leaves, structure = jax.tree.flatten(local)
  is_traced = any(isinstance(x, jax.core.Tracer) for x in leaves)
  known = [not moved for moved in jax.tree.leaves(view.leaves.movable)]
  if view.grad_fn is not None or not any(known) or not is_traced:
    return view
  program = jax.make_jaxpr(view.value)(local)
  if any(type(x).__name__ != 'NamedAxisEffect' for x in program.effects):
    return view
  saved = []

  def save(function: Callable[..., Any], *operands: Any) -> Any:
    saved.append(function(*operands))
    return saved[-1]

  given = list(zip(leaves, known, strict=True))
  _evaluate(program, given, save, only_known=True)

  def value_fn(whole: optax.Params) -> jax.Array:
    results = iter(saved)
    point = devices.as_local(view.leaves.split(whole), view.axis_name)
    use = lambda function, *x: _with_results(function)(next(results), *x)
    given = zip(structure.flatten_up_to(point), known, strict=True)
    return _evaluate(program, list(given), use)[0][0]

  return dataclasses.replace(view, value_fn=value_fn)


def _with_results(function: Callable[..., Any]) -> Callable[..., Any]:
  """Returns a differentiable function that takes its own results as well."""

  @jax.custom_vjp
  def known(results: Any, *operands: Any) -> Any:
    del operands
    return results

  def backward(operands: Any, cotangent: Any) -> Any:
    return None, *jax.vjp(function, *operands)[1](cotangent)

  known.defvjp(lambda results, *operands: (results, operands), backward)
  return known


def _evaluate(
  program: core.ClosedJaxpr,
  given: list[tuple[Any, bool]],
  expensive: Callable[..., Any],
  *,
  only_known: bool = False,
) -> list[tuple[Any, bool]]:
  """Evaluates a program, and its expensive known equations by `expensive`.

  Operands and results are pairs of a value and whether it is known. With
  `only_known`, others are None.
  """
  jaxpr = program.jaxpr
  names = (*jaxpr.constvars, *jaxpr.invars)
  pairs = [*((x, True) for x in program.consts), *given]
  values = dict(zip(names, pairs, strict=True))
  is_literal = lambda x: isinstance(x, core.Literal)
  read = lambda x: (x.val, True) if is_literal(x) else values[x]
  for equation in jaxpr.eqns:
    operands = [read(x) for x in equation.invars]
    known = all(flag for _, flag in operands)
    if equation.primitive.name in _INLINED:
      (inner,) = called_by(equation)
      results = _evaluate(inner, operands, expensive, only_known=only_known)
    elif known or not only_known:
      names = [x for x in equation.invars if not is_literal(x)]
      names = list(dict.fromkeys(names))
      one = core.Jaxpr(
        [], names, equation.outvars, [equation], debug_info=jaxpr.debug_info
      )
      function = core.jaxpr_as_fun(core.ClosedJaxpr(one, ()))
      use = expensive if known and _is_expensive(equation) else _call
      found = use(function, *(values[x][0] for x in names))
      results = [(x, known) for x in found]
    else:
      results = [(None, False)] * len(equation.outvars)
    values.update(zip(equation.outvars, results, strict=True))
  return [read(x) for x in jaxpr.outvars]


def _call(function: Callable[..., Any], *operands: Any) -> Any:
  return function(*operands)


def _is_expensive(equation: Any) -> bool:
  """Whether an equation multiplies matrices or sums over devices."""
  name = equation.primitive.name
  is_collective = equation.effects and name != 'pvary'
  inner = (e for program in called_by(equation) for e in program.jaxpr.eqns)
  return name in _EXPENSIVE or is_collective or any(map(_is_expensive, inner))
