"""Methods in NumPy that ascend at some steps."""

import jax
import numpy as np

from tests.distributed.by_hand.every_step import sam
from tests.distributed.by_hand.step import by_leaf, dot, mean, norm, of_length
from tests.distributed.problem import RHO


def ss_sam(step):
  coin = jax.random.fold_in(jax.random.key(1), step.t)
  if step.skips(jax.random.bernoulli(coin, 0.5)):
    return step.gradients()
  return sam(step)


def is_sharp(step, low, high, total_steps=20, decay=0.9):
  """The decision of AE-SAM, by the gradient of all devices."""
  past = step.memory.get('moments', (0.0, 0.0))
  moments, ascends = moments_and_decision(
    np.sum(step.gradients().mean(axis=0) ** 2),
    past,
    (1 - step.t / total_steps) * high + step.t / total_steps * low,
    decay,
  )
  step.memory['moments'] = moments
  return ascends


def moments_and_decision(x, past, factor, decay=0.9):
  average = decay * past[0] + (1 - decay) * x
  variance = decay * past[1] + (1 - decay) * (x - average) ** 2
  return (average, variance), x >= average + factor * np.sqrt(variance)


def ae_sam(step):
  if step.skips(is_sharp(step, -1, 1)):
    return step.gradients()
  return sam(step)


def every_third(step):
  return step.t % 3 == 0


def ascend_all(step):
  return of_length(RHO, step.ascent())


def layers_of_ratio(step, rule='global'):
  g = step.ascent()

  def leaf(w, g, total):
    size, length = norm(g), norm(w)
    if rule == 'unit':
      return RHO * g / size
    if rule == 'layer':
      return RHO * length * g / size**2
    return RHO * np.minimum(length / size, 20) * g / total[..., :1]

  total = np.broadcast_to(norm(g), g.shape)
  return by_leaf(leaf, np.broadcast_to(step.w, g.shape), g, total)


def reuse(
  step,
  epsilon=ascend_all,
  decide=every_third,
  descend=lambda step, epsilon: step.gradients(epsilon),
  dtype=np.float64,
  per_leaf=False,
):
  """LookSAM's descent, of averages over the devices."""
  each = by_leaf if per_leaf else lambda function, *rows: function(*rows)
  g, memory = mean(step.gradients()), step.memory
  moved = epsilon(step)  # it may keep something at every step
  if step.skips(decide(step)):
    if 'reused' not in memory:
      return g
    gv = np.broadcast_to(memory['reused'], g.shape)
    return g + each(lambda g, v: 0.1 * norm(g) * v, g, gv)
  gp = mean(descend(step, moved))
  gv = each(lambda gp, g: of_length(1, orthogonal(gp, g)), gp, g)[0]
  memory['reused'] = gv.astype(dtype).astype(np.float64)
  return gp


def orthogonal(gp, g):
  """Returns gp without its part along g; 0 where nothing else is in it."""
  rest = gp - dot(gp, g) / norm(g) ** 2 * g
  return np.where(norm(rest) > 1e-12 * norm(gp), rest, 0)
