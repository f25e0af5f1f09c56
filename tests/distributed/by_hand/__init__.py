"""Every method in NumPy, from its text alone, on any number of devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tests.distributed import problem
from tests.distributed.by_hand.around_base import (
  b_sam,
  entropy_sgd,
  lookbehind,
  sampa,
)
from tests.distributed.by_hand.curvature import (
  cr_sam,
  eigen_sam,
  frob_sam,
  lpf_sgd,
)
from tests.distributed.by_hand.every_step import (
  asam,
  async_sam,
  fisher_sam,
  friendly_sam,
  gsam,
  le_sam,
  mix,
  mix_with_unit_clean,
  momentum_sam,
  noise,
  sam,
  sam_of_signs,
  unnormalized_sam,
  unpublished,
  wsam_decoupled,
  z_sharp,
  z_sharp_per_tensor,
)
from tests.distributed.by_hand.some_entries import (
  fisher_mask,
  one_of_two,
  sparse_sam_dynamic,
  sparse_sam_fisher,
)
from tests.distributed.by_hand.some_examples import (
  esam,
  k_sam,
  m_sam,
  ordered_sgd,
  subset_sam,
  top,
)
from tests.distributed.by_hand.some_steps import (
  ae_sam,
  is_sharp,
  layers_of_ratio,
  reuse,
  ss_sam,
)
from tests.distributed.by_hand.step import SIZE, Step, flat, of_length
from tests.distributed.problem import RHO


def everything(step):
  def epsilon(step):
    d = noise(step, step.ascent(rows=top(step, 4)), decay=0.5)
    return fisher_mask(step, 3) * of_length(RHO, d)

  return reuse(
    step,
    epsilon,
    lambda step: is_sharp(step, -1, 1),
    lambda step, epsilon: step.gradients(epsilon, top(step, 0.5)),
  )


part = functools.partial

BFLOAT16 = jnp.dtype('bfloat16')

METHODS = {
  'sam': sam,
  'sam in steps': part(sam, ascent_steps=2),
  'sam of signs': sam_of_signs,
  'asam': asam,
  'friendly_sam': friendly_sam,
  'friendly_sam official': part(friendly_sam, official=True),
  'friendly_sam in bfloat16': part(friendly_sam, dtype=BFLOAT16),
  'gsam': gsam,
  'gsam coupled': gsam,
  'gradient_norm_penalty': part(mix, alpha=0.8),
  'gradient_norm_penalty of unit length': mix_with_unit_clean,
  'wsam': part(mix, alpha=9.0),
  'wsam_decoupled': wsam_decoupled,
  'lookbehind': lookbehind,
  'sampa': sampa,
  'b_sam': b_sam,
  'entropy_sgd': entropy_sgd,
  'fisher_sam': fisher_sam,
  'unnormalized_sam': unnormalized_sam,
  'unnormalized_sam clipped': part(unnormalized_sam, clip=True),
  'ss_sam': ss_sam,
  'look_sam': reuse,
  'look_sam by leaf': part(reuse, per_leaf=True),
  'look_sam in bfloat16': part(reuse, dtype=BFLOAT16),
  'look_layer_sam': part(reuse, epsilon=layers_of_ratio),
  'look_layer_sam layer': part(
    reuse, epsilon=part(layers_of_ratio, rule='layer')
  ),
  'look_layer_sam unit': part(
    reuse, epsilon=part(layers_of_ratio, rule='unit')
  ),
  'ae_sam': ae_sam,
  'ae_look_sam': part(reuse, decide=part(is_sharp, low=0, high=2)),
  'sparse_sam_fisher': sparse_sam_fisher,
  'sparse_sam_fisher of all': part(sparse_sam_fisher, samples=64),
  'sparse_sam_fisher 1:2': part(sparse_sam_fisher, choose=one_of_two),
  'sparse_sam_dynamic': sparse_sam_dynamic,
  'k_sam': k_sam,
  'esam': esam,
  'esam of a number': part(esam, gamma=3),
  'ordered_sgd': ordered_sgd,
  'ordered_sgd of all': part(ordered_sgd, k=1.0),
  'subset_sam': subset_sam,
  'subset_sam drawn': part(subset_sam, fraction=3, key=1),
  'm_sam': m_sam,
  'm_sam by 4': part(m_sam, size=4),
  'm_sam by 8': part(m_sam, size=8),
  'le_sam': le_sam,
  'z_sharp': z_sharp,
  'z_sharp per_tensor': z_sharp_per_tensor,
  'momentum_sam': momentum_sam,
  'async_sam': async_sam,
  'cr_sam': cr_sam,
  'eigen_sam': eigen_sam,
  'frob_sam': frob_sam,
  'lpf_sgd': lpf_sgd,
  'lpf_sgd of one part': part(lpf_sgd, parts=1),
  'unpublished': unpublished,
  'everything': everything,
}


def train(name, devices, *, sync):
  """Takes all steps; returns (parameters, whether each step ascended)."""
  given = jax.tree.map(lambda x: np.asarray(x, np.float64), problem.batches())
  w, memory, momentum = flat(problem.params()), {}, np.zeros(SIZE)
  for t in range(problem.STEPS):
    batch = jax.tree.map(lambda x, t=t: x[t], given)
    step = Step(w, batch, t, memory, devices=devices, sync=sync)
    direction = METHODS[name](step)
    if 'whole' in memory:  # the update, and not the direction of a base
      w = w + memory.pop('whole')
      continue
    direction = direction.mean(axis=0)
    momentum = direction + problem.MOMENTUM * momentum
    w = w - problem.LEARNING_RATE * momentum + memory.pop('outside', 0.0)
  return w, memory['ascended']
