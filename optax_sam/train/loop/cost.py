"""The cost of a step, in gradients of the base optimizer."""

import dataclasses
import math
from typing import Any


@dataclasses.dataclass(frozen=True)
class StepCost:
  """Operations of a step, in units of a step of the base optimizer."""

  ascended: float  # with a perturbed gradient, or of a method that never skips
  skipped: float

  def until(self, steps: int, second_gradients: float) -> float:
    """Returns the cost of steps, of which some took a perturbed gradient."""
    skipped = steps - second_gradients
    return self.ascended * second_gradients + self.skipped * skipped


def repetition(jaxpr: Any) -> float:
  """Returns how many times more operations a function has than XLA counts.

  XLA counts the body of a loop once, as if it were not repeated.
  """
  once = _operations(jaxpr, repeats=False)
  return _operations(jaxpr, repeats=True) / once if once else 1.0


def _operations(jaxpr: Any, *, repeats: bool) -> float:
  """Returns the operations of matrix products and convolutions."""
  total = 0.0
  for equation in jaxpr.eqns:
    name, given = equation.primitive.name, equation.params
    out = sum(math.prod(getattr(x.aval, 'shape', ())) for x in equation.outvars)
    if name == 'dot_general':
      (contracted, _), _ = given['dimension_numbers']
      shape = equation.invars[0].aval.shape
      total += 2 * out * math.prod(shape[axis] for axis in contracted)
    elif name == 'conv_general_dilated':
      shape = equation.invars[1].aval.shape
      outputs = shape[given['dimension_numbers'].rhs_spec[0]]
      total += 2 * out * math.prod(shape) / outputs
    inner = [
      _operations(getattr(part, 'jaxpr', part), repeats=repeats)
      for value in given.values()
      for part in (value if isinstance(value, tuple | list) else [value])
      if hasattr(part, 'jaxpr') or hasattr(part, 'eqns')
    ]
    times = given['length'] if name == 'scan' and repeats else 1
    total += times * (max(inner) if name == 'cond' else sum(inner))
  return total
