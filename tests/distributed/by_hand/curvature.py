"""Methods in NumPy that look at more than one point."""

import jax
import numpy as np

from tests.distributed import problem
from tests.distributed.by_hand.step import (
  LEAVES,
  by_leaf,
  dot,
  flat,
  norm,
  of_length,
)
from tests.distributed.problem import RHO


def cr_sam(step, gamma=0.1, beta=0.01):
  g = step.ascent()
  epsilon = of_length(RHO, g)
  gp, gm = step.gradients(epsilon), step.gradients(-epsilon)
  return gp + gamma * (gp + gm - 2 * g) + beta * (gp - gm)


def top_eigenvector(step, power_steps=2):
  """Renews it at every second step, by differences of gradients."""
  v = step.memory.get('eigenvector')
  if v is None:
    key, leaves = jax.random.key(1), jax.tree.leaves(problem.params())
    signs = [
      jax.random.bernoulli(jax.random.fold_in(key, i), 0.5, leaf.shape)
      for i, leaf in enumerate(leaves)
    ]
    v = of_length(1, 2 * flat(signs) - 1)
  if step.t % 2 == 0:
    for _ in range(power_steps):
      ahead, behind = (
        step.gradients(x * v).mean(axis=0) for x in (1e-4, -1e-4)
      )
      v = of_length(1, ahead - behind)
  step.memory['eigenvector'] = v
  return v


def eigen_sam(step, alpha=0.2):
  g, v = step.ascent(), top_eigenvector(step)
  h = of_length(1, g)
  turn = alpha * np.sign(dot(g, v))
  return step.gradients(RHO * (h + turn * (v - dot(h, v) * h)))


def frob_sam(step, penalty=0.005, num_samples=2):
  key, leaves = jax.random.key(1), jax.tree.leaves(problem.params())
  values, gradients = [], []
  for sample in range(num_samples):
    draw = jax.random.fold_in(jax.random.fold_in(key, step.t), sample)
    z = flat(
      [
        jax.random.normal(jax.random.fold_in(draw, i), leaf.shape)
        for i, leaf in enumerate(leaves)
      ]
    )
    means = np.array([[part.mean()] for part in step.losses(RHO * z)])
    values.append(step.shared(means))
    gradients.append(step.ascent(RHO * z))
  values, gradients = np.array(values), np.array(gradients)
  parts = (values - values.mean(axis=0)) * (gradients - gradients.mean(axis=0))
  total = parts.sum(axis=0) / (num_samples - 1)
  return step.gradients() + penalty / RHO**2 * total


def lpf_sgd(step, parts=3, final_ratio=15.0, total_steps=20):
  key, leaves = jax.random.key(2), jax.tree.leaves(problem.params())
  grown = (final_ratio - 1) * (1 - np.cos(np.pi * step.t / total_steps)) / 2
  size = by_leaf(lambda w: np.full_like(w, norm(w)), step.w)
  filters = norm(step.w[LEAVES['kernel']].reshape(4, 8).T)
  size[LEAVES['kernel']] = np.tile(filters.ravel(), 4)
  examples = len(step.parts[0]['y'])
  total = 0
  for number, rows in enumerate(np.array_split(np.arange(examples), parts)):
    draw = jax.random.fold_in(jax.random.fold_in(key, step.t), number)
    z = flat(
      [
        jax.random.normal(jax.random.fold_in(draw, i), leaf.shape)
        for i, leaf in enumerate(leaves)
      ]
    )
    noise = RHO * (1 + grown) * size * z
    found = step.gradients(noise, [rows] * len(step.parts))
    total = total + len(rows) / examples * found
  return total
