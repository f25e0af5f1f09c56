"""LookSAM and Look-LayerSAM."""

import numpy as np

import optax_sam
from tests.oracles.cases import cases
from tests.oracles.step import dot, mean, norm, of_length, rounded


def orthogonal(gp, g):
  """Returns the component of gp orthogonal to g; 0 if they are parallel."""
  rest = gp - dot(gp, g) / norm(g) ** 2 * g
  return np.where(norm(rest) > 1e-12 * norm(gp), rest, 0)


def reuse(
  step, epsilon, ascends, descend=None, *, alpha, per_leaf=False, dtype=None
):
  """Returns LookSAM's directions, from averages over the devices."""
  each = step.by_leaf if per_leaf else lambda function, *rows: function(*rows)
  g, memory = mean(step.gradients()), step.memory
  if step.skips(ascends):
    if 'reused' not in memory:
      return g
    gv = np.broadcast_to(memory['reused'], g.shape)
    return g + each(lambda g, v: alpha * norm(g) * v, g, gv)
  gp = mean((descend or step.gradients)(epsilon))
  gv = each(lambda gp, g: of_length(1, orthogonal(gp, g)), gp, g)[0]
  memory['reused'] = rounded(gv, dtype)
  return gp


def look_sam(
  step, rho=0.05, period=5, alpha=0.1, *, per_leaf=False, accumulator_dtype=None
):
  return reuse(
    step,
    of_length(rho, step.ascent()),
    step.t % period == 0,
    alpha=alpha,
    per_leaf=per_leaf,
    dtype=accumulator_dtype,
  )


def look_layer_sam(
  step, rho=0.05, period=5, alpha=0.1, rule='global', max_ratio=20.0
):
  g = step.ascent()

  def leaf(w, g, total):
    size, length = norm(g), norm(w)
    if rule == 'unit':
      return rho * g / size
    if rule == 'layer':
      return rho * length * g / size**2
    return rho * np.minimum(length / size, max_ratio) * g / total[..., :1]

  total = np.broadcast_to(norm(g), g.shape)
  epsilon = step.by_leaf(leaf, np.broadcast_to(step.w, g.shape), g, total)
  return reuse(step, epsilon, step.t % period == 0, alpha=alpha)


CASES = [
  *cases(
    optax_sam.look_sam,
    look_sam,
    {'rho': 0.1, 'period': 3},
    {'per_leaf': True, 'alpha': 0.3},
    rounded=[{'accumulator_dtype': 'bfloat16'}],
  ),
  *cases(
    optax_sam.look_layer_sam,
    look_layer_sam,
    {'rho': 0.1, 'period': 3},
    {'rule': 'layer'},
    {'rule': 'unit'},
    {'max_ratio': 2.0},
  ),
]
