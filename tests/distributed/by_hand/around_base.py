"""Methods in NumPy that hold the base optimizer, or replace it."""

import functools

import jax
import numpy as np

from tests.distributed import problem
from tests.distributed.by_hand.step import SIZE, flat, of_length
from tests.distributed.problem import RHO


def sgd(g, trace):
  """Returns the update of the base optimizer, and its next momentum."""
  trace = g + problem.MOMENTUM * trace
  return -problem.LEARNING_RATE * trace, trace


def lookbehind(step, steps=2, alpha=0.5):
  memory, trace = step.memory, step.memory.get('trace', np.zeros(SIZE))
  h, point, gone = step.ascent(), 0.0, 0.0
  for _ in range(steps):
    point = point + of_length(RHO, h)
    found = step.gradients(point)
    h = step.shared(found)
    moved, trace = sgd(found.mean(axis=0), trace)
    gone = gone + moved
  memory['trace'], memory['whole'] = trace, alpha * gone


def sampa(step, weight=0.2):
  memory = step.memory
  ahead = memory.get('ahead', np.zeros(SIZE))
  trace = memory.get('trace', np.zeros(SIZE))
  now = step.parts
  step.parts = memory.get('parts', now)
  first = step.gradients(of_length(RHO, ahead[None]))
  step.parts = now
  guess = sgd(ahead, trace)[0] if step.t else 0.0
  second = step.gradients(guess)
  mixed = (1 - weight) * first + weight * second
  memory['whole'], memory['trace'] = sgd(mixed.mean(axis=0), trace)
  memory['ahead'], memory['parts'] = second.mean(axis=0), now


def normal(*numbers):
  """Returns what is drawn at a step, by a seed and what it is folded with."""
  key = functools.reduce(
    jax.random.fold_in, numbers[1:], jax.random.key(numbers[0])
  )
  leaves = jax.tree.leaves(problem.params())
  return flat(
    [
      jax.random.normal(jax.random.fold_in(key, i), leaf.shape)
      for i, leaf in enumerate(leaves)
    ]
  )


def b_sam(step, parts=3, num_data=900):
  memory, decay = step.memory, 40 / num_data
  m, s = memory.get('moments', (np.zeros(SIZE), np.ones(SIZE)))
  examples = len(step.parts[0]['y'])
  size, descent, ascent = -(-examples // parts), 0.0, 0.0
  for number in range(parts):
    noise = normal(1, step.t, number) / np.sqrt(num_data * s)
    rows = np.arange(examples)[number * size : (number + 1) * size]
    some, share = [rows] * len(step.parts), len(rows) / examples
    g = step.gradients(noise, some)
    ascent = ascent + share * np.abs(g)
    descent = descent + share * step.gradients(RHO * g / s, some)
  m = 0.9 * m + 0.1 * (descent.mean(axis=0) + decay * step.w)
  memory['whole'] = -0.5 * m / s
  past = np.sqrt(s) * ascent.mean(axis=0) + 0.1 + decay
  memory['moments'] = m, 0.999 * s + 0.001 * past


def entropy_sgd(step, inner_steps=4, eta=0.1, gamma=0.03):
  memory, w = step.memory, step.w
  x, mu, v, n = memory.get('walk', (w, w, np.zeros(SIZE), 1))
  g = step.gradients().mean(axis=0)
  v = 0.9 * v + g
  pull = gamma * 1.001**n * (x - w)
  noise = np.sqrt(2 * eta) * 0.01 * normal(1, step.t)
  w = w - eta * (g + 0.9 * v - pull) + noise
  mu = 0.75 * mu + 0.25 * w
  if step.t % inner_steps == inner_steps - 1:
    w = x = mu
    v, n = np.zeros(SIZE), n + 1
  memory['walk'], memory['whole'] = (x, mu, v, n), w - step.w
