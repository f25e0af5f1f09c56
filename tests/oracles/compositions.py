"""Compositions of components that no published method combines."""

import optax

import optax_sam
from optax_sam import descents, perturbations, policies, selections
from tests.oracles.ae_sam import is_sharp
from tests.oracles.cases import cases
from tests.oracles.friendly_sam import noise
from tests.oracles.k_sam import top
from tests.oracles.look_sam import reuse
from tests.oracles.sam import sam
from tests.oracles.sparse_sam_fisher import fisher_mask
from tests.oracles.step import Update, of_length


def unpublished(rho, *, axis_name=None, sync_ascent=False):
  return optax_sam.sharpness_aware(
    optax.chain(
      perturbations.subtract_ema(0.5), perturbations.scale_to_radius(rho)
    ),
    policy=policies.after(1, policies.every(2)),
    descent=descents.mix(0.5),
    axis_name=axis_name,
    sync_ascent=sync_ascent,
  )


def _unpublished(step, rho):
  epsilon = of_length(rho, noise(step, step.ascent(), decay=0.5))
  if step.skips(step.t >= 1 and step.t % 2 == 0):
    return step.gradients()
  g = step.ascent()
  return g + 0.5 * (step.gradients(epsilon) - g)


def everything(rho, *, axis_name=None, sync_ascent=False):
  """All four components have a state or a requirement."""
  return optax_sam.sharpness_aware(
    optax.chain(
      perturbations.subtract_ema(0.5),
      perturbations.scale_to_radius(rho),
      perturbations.keep_top_fisher(0.5, num_samples=3, refresh_every=2),
    ),
    policy=policies.on_sharp_gradients(20),
    descent=descents.reuse_orthogonal(),
    selection=selections.top_k(4, 0.5),
    axis_name=axis_name,
    sync_ascent=sync_ascent,
  )


def _everything(step, rho):
  d = noise(step, step.ascent(rows=top(step, 4)), decay=0.5)
  return reuse(
    step,
    fisher_mask(step, 0.5, 3, 2) * of_length(rho, d),
    is_sharp(step, 20, 0.9, -1, 1),
    lambda epsilon: step.gradients(epsilon, top(step, 0.5)),
    alpha=0.1,
  )


def after_base(base, rho, *, axis_name=None, sync_ascent=False):
  """A transformation after the base optimizer, and a method before it."""
  method = optax_sam.sam(rho, axis_name=axis_name, sync_ascent=sync_ascent)
  noise = optax_sam.anti_pgd(0.01, key=1)
  return optax.chain(method, base, noise, optax_sam.swa(3, every=2))


def _after_base(step, rho):
  gradient = sam(step, rho).mean(axis=0)
  noise = 0.01 * step.normal(1, step.t + 1)
  update = step.base.update(gradient, step.w) + noise
  update = update - step.memory.get('noise', 0.0)
  step.memory['noise'] = noise
  if step.t >= 2 and step.t % 2 == 0:
    step.memory.setdefault('averaged', []).append(step.w + update)
  return Update(update)


CASES = [
  *cases(unpublished, _unpublished, {'rho': 0.1}),
  *cases(everything, _everything, {'rho': 0.1}),
  *cases(after_base, _after_base, {'rho': 0.1}),
]
