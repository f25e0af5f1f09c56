"""Methods in NumPy that ascend at every step."""

import numpy as np

from tests.distributed import problem
from tests.distributed.by_hand.step import (
  LEAVES,
  SIZE,
  dot,
  mean,
  norm,
  of_length,
)
from tests.distributed.problem import RHO


def sam(step, ascent_steps=1):
  delta = of_length(RHO, step.ascent())
  for _ in range(ascent_steps - 1):
    delta = delta + of_length(RHO, step.ascent(delta))
    delta = delta * np.minimum(1, RHO / norm(delta))
  return step.gradients(delta)


def sam_of_signs(step):
  return step.gradients(RHO * np.sign(step.ascent()))


def asam(step, eta=0.01):
  scale = np.abs(step.w) + eta
  scale[LEAVES['bias']] = scale[LEAVES['offset']] = 1
  g = step.ascent()
  return step.gradients(RHO * scale**2 * g / norm(scale * g))


def fisher_sam(step):
  g = step.ascent()
  natural = g / (1 + g**2)
  return step.gradients(RHO * natural / np.sqrt(dot(g, natural)))


def unnormalized_sam(step, *, clip=False):
  g = step.ascent()
  return step.gradients(RHO * g / (np.maximum(norm(g), 1) if clip else 1))


def gsam(step, alpha=0.4):
  g = step.ascent()
  gp = step.shared(step.gradients(of_length(RHO, g)))
  return gp - alpha * (g - dot(g, gp) / norm(gp) ** 2 * gp)


def mix(step, alpha):
  g = step.ascent()
  return g + alpha * (step.gradients(of_length(RHO, g)) - g)


def mix_with_unit_clean(step, alpha=0.8):
  g = step.ascent()
  gp = step.gradients(of_length(RHO, g))
  return (1 - alpha) * of_length(1, g) + alpha * gp


def wsam_decoupled(step, a=9.0):
  g = mean(step.gradients())
  gp = mean(sam(step))
  step.memory['outside'] = -problem.LEARNING_RATE * a * (gp - g)[0]
  return g


def noise(step, g, decay=0.9, *, official=False, dtype=np.float64):
  """Subtracts the average of what all devices saw."""
  before = step.memory.get('ema', np.zeros(SIZE))
  after = decay * before + (1 - decay) * g.mean(axis=0)
  if official:
    after = after if step.t else g.mean(axis=0)
  step.memory['ema'] = after.astype(dtype).astype(np.float64)
  return g - (before if official else after)


def friendly_sam(step, **given):
  return step.gradients(of_length(RHO, noise(step, step.ascent(), **given)))


def unpublished(step):
  epsilon = of_length(RHO, noise(step, step.ascent(), decay=0.5))
  if step.skips(step.t >= 1 and step.t % 2 == 0):
    return step.gradients()
  g = step.ascent()
  return g + 0.5 * (step.gradients(epsilon) - g)


def le_sam(step, rho_max=0.5):
  g = step.ascent()
  return step.gradients(of_length(np.minimum(RHO / norm(g), rho_max), g))


def outliers(g, share=0.5):
  """Keeps what stands out of the one leaf with two axes."""
  kernel = g[:, LEAVES['kernel']]
  centred = kernel - kernel.mean(axis=1, keepdims=True)
  z = np.abs(centred / kernel.std(axis=1, ddof=1, keepdims=True))
  kept = g.copy()
  kept[:, LEAVES['kernel']] *= z > np.quantile(z, share, axis=1, keepdims=True)
  return kept


def z_sharp(step):
  return step.gradients(of_length(RHO, outliers(step.ascent())))


def z_sharp_per_tensor(step):
  g = step.ascent()
  epsilon, kernel = of_length(RHO, g), LEAVES['kernel']
  epsilon[:, kernel] = of_length(RHO, outliers(g)[:, kernel])
  return step.gradients(epsilon)


def momentum_sam(step, decay=0.9):
  v = step.memory.get('momentum', np.zeros((1, SIZE)))
  gp = step.gradients(-of_length(RHO, v))
  step.memory['momentum'] = decay * v + gp.mean(axis=0)
  return gp


def async_sam(step):
  last = step.memory.get('last', np.zeros((1, SIZE)))
  step.memory['last'] = step.gradients().mean(axis=0, keepdims=True)
  return step.gradients(of_length(RHO, last))
