"""Methods in NumPy that perturb some of the weights."""

import jax
import numpy as np

from optax_sam import masks
from tests.distributed import problem
from tests.distributed.by_hand.step import (
  LEAVES,
  SIZE,
  flat,
  gradient,
  largest,
  of_length,
)
from tests.distributed.problem import RHO


def kept_share(scores, share=0.5):
  mask = np.zeros(SIZE)
  mask[largest(scores, SIZE - int(np.ceil(share * SIZE)))] = 1
  return mask


def one_of_two(scores):
  """Keeps the larger of every two inputs; leaves without inputs whole."""
  mask = np.ones(SIZE)
  pairs = scores[LEAVES['kernel']].reshape(2, 2, 8)
  kept = np.stack([pairs[:, 0] >= pairs[:, 1], pairs[:, 1] > pairs[:, 0]], 1)
  mask[LEAVES['kernel']] = kept.ravel()
  return mask


def fisher_mask(step, samples, choose=kept_share):
  """Renews the mask at every second step, from each device's share."""
  if step.t % 2 == 0:
    share = int(np.ceil(samples / len(step.parts)))
    squares = [
      gradient(step.w, {k: v[i : i + 1] for k, v in part.items()}) ** 2
      for part in step.parts
      for i in range(min(share, len(part['y'])))
    ]
    step.memory['mask'] = choose(np.sum(squares, axis=0))
  return step.memory['mask']


def sparse_sam_fisher(step, samples=5, choose=kept_share):
  mask = fisher_mask(step, samples, choose)
  return step.gradients(mask * of_length(RHO, step.ascent()))


def sparse_sam_dynamic(step, total_steps=20):
  key = jax.random.key(1)

  def draw(key):  # the library's, since any draw would do
    return flat(masks.random_bits(key, problem.params()))

  mask = step.memory.get('mask')
  mask = kept_share(draw(key)) if mask is None else mask
  epsilon = of_length(RHO, step.ascent())
  if step.t % 2 == 0:
    active, outside = np.flatnonzero(mask), np.flatnonzero(mask == 0)
    rate = 0.25 * (1 + np.cos(np.pi * step.t / total_steps))
    moved = min(int(len(active) * rate), len(outside))
    flatness = -np.abs(epsilon.mean(axis=0)[active])
    bits = draw(jax.random.fold_in(jax.random.fold_in(key, step.t), 1))
    renewed = mask.copy()
    renewed[active[largest(flatness, moved)]] = 0
    renewed[outside[largest(bits[outside], moved)]] = 1
    step.memory['mask'] = renewed
  else:
    step.memory['mask'] = mask
  return step.gradients(mask * epsilon)
