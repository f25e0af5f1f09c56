"""One training step in NumPy on all devices, and its arithmetic.

A row of an array belongs to one device: gradients, perturbations and directions
have shape (devices, weights), in float64.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Update(NamedTuple):
  """The update of a method that wraps or replaces the base optimizer."""

  value: np.ndarray


class Sgd:
  """The base optimizer of a problem."""

  def __init__(self, problem):
    self._problem, self._trace, self._count = problem, 0.0, 0

  def guess(self, gradient, w):
    """Returns the update of a gradient without changing the state."""
    return -float(self._problem.rate(self._count)) * self._moved(gradient, w)

  def update(self, gradient, w):
    found = self.guess(gradient, w)
    self._trace = self._moved(gradient, w)
    self._count += 1
    return found

  def _moved(self, gradient, w):
    problem = self._problem
    return gradient + problem.decay * w + problem.momentum * self._trace


class Step:
  """One step on all devices.

  Attributes:
    problem: the problem.
    w: the parameters.
    t: number of the step, from 0.
    parts: the batch of every device.
    base: the base optimizer.
    memory: state of the rule.
    kept: the mask: 1 for weights that may be perturbed, 0 for others.
  """

  def __init__(self, problem, w, batch, t, memory, base, *, devices, sync):
    self.problem, self.w, self.t, self.base = problem, w, t, base
    self.memory, self.sync, self.kept = memory, sync, np.ones(len(w))
    examples = len(next(iter(batch.values())))
    rows = np.split(np.arange(examples), devices)
    self.parts = [{k: v[i] for k, v in batch.items()} for i in rows]
    memory.setdefault('ascended', []).append(True)

  def gradients(self, points=0.0, rows=None):
    """Returns the gradient of each device at its own point, of some rows."""
    points = np.broadcast_to(points, (len(self.parts), len(self.w)))
    rows = [slice(None)] * len(self.parts) if rows is None else rows
    parts = zip(points, self.parts, rows, strict=True)
    return np.stack(
      [
        self.problem.gradient(
          self.w + point, {k: v[i] for k, v in part.items()}
        )
        for point, part, i in parts
      ]
    )

  def shared(self, rows):
    """Averages over the devices if `sync_ascent` is set."""
    return mean(rows) if self.sync else rows

  def ascent(self, points=0.0, rows=None):
    """Returns the ascent gradients of the devices."""
    return self.kept * self.shared(self.gradients(points, rows))

  def losses(self, points=0.0):
    """Returns the per-example losses of each device at its own point."""
    points = np.broadcast_to(points, (len(self.parts), len(self.w)))
    pairs = zip(points, self.parts, strict=True)
    return [self.problem.losses(self.w + x, part) for x, part in pairs]

  def skips(self, ascends):
    """Records the decision; returns whether the step is skipped."""
    self.memory['ascended'][-1] = bool(ascends)
    return not ascends

  def number(self, value):
    """Returns a number, or the value of a schedule at this step."""
    return float(value(self.t)) if callable(value) else value

  def normal(self, key, *numbers):
    """Returns standard normal entries, from a key folded with numbers."""
    return self.problem.flat(_normal(key, numbers, self.problem))

  def coins(self, chance, key, *numbers):
    """Returns a Bernoulli draw for every weight."""
    return self.problem.flat(_coins(chance, key, numbers, self.problem))

  def coins_of_leaves(self, chance, key, *numbers):
    """Returns for every weight the Bernoulli draw of its leaf."""
    chance = jnp.float32(chance)
    found = _coins(chance, key, numbers, self.problem, of_leaves=True)
    return self.problem.flat(found)

  def by_leaf(self, function, *rows):
    """Applies a function leaf by leaf."""
    found = np.zeros(np.broadcast_shapes(*(x.shape for x in rows)))
    for leaf in self.problem.slices.values():
      found[..., leaf] = function(*(x[..., leaf] for x in rows))
    return found


def _draw(draw, key, numbers, problem):
  """Draws each leaf with its own key."""
  key = functools.reduce(jax.random.fold_in, numbers, jax.random.key(key))
  return {
    name: draw(jax.random.fold_in(key, i), shape)
    for i, (name, shape) in enumerate(problem.shapes.items())
  }


@functools.partial(jax.jit, static_argnums=2)
def _normal(key, numbers, problem):
  draw = lambda key, shape: jax.random.normal(key, shape, float)
  return _draw(draw, key, numbers, problem)


@functools.partial(jax.jit, static_argnums=3, static_argnames='of_leaves')
def _coins(chance, key, numbers, problem, *, of_leaves=False):
  def draw(key, shape):
    coin = jax.random.bernoulli(key, chance, () if of_leaves else shape)
    return jnp.broadcast_to(coin, shape)

  return _draw(draw, key, numbers, problem)


class Trained(NamedTuple):
  """The result of a run of a rule.

  Attributes:
    path: the parameters after every step.
    ascended: for each step, whether it took the perturbed gradient.
    memory: the final state of the rule.
  """

  path: np.ndarray
  ascended: list
  memory: dict[str, Any]


def train(rule, problem, *, devices=1, sync=False, kept=None):
  """Takes all steps of a problem with a rule."""
  w, memory, base, path = problem.start, {}, Sgd(problem), []
  for t in range(problem.steps):
    step = Step(
      problem, w, problem.batch(t), t, memory, base, devices=devices, sync=sync
    )
    step.kept = step.kept if kept is None else kept
    found = rule(step)
    if not isinstance(found, Update):
      found = Update(base.update(found.mean(axis=0), w))
    w = w + found.value
    path.append(w)
  return Trained(np.array(path), memory.pop('ascended'), memory)


def norm(rows):
  return np.sqrt(np.sum(np.square(rows), axis=-1, keepdims=True))


def dot(left, right):
  return np.sum(left * right, axis=-1, keepdims=True)


def of_length(radius, rows):
  size = norm(rows)
  return radius * rows / np.where(size > 0, size, 1)


def mean(rows):
  return np.broadcast_to(rows.mean(axis=0), rows.shape)


def largest(scores, size):
  """Returns the positions of the largest scores; ties by position."""
  return np.argsort(-scores, kind='stable')[:size]


def count(size, rows):
  """Returns a number of examples, from a number or a fraction."""
  return (
    min(size, rows) if isinstance(size, int) else max(1, round(size * rows))
  )


def rounded(rows, dtype):
  """Returns numbers rounded to a dtype."""
  if dtype is None:
    return rows
  return rows.astype(jnp.dtype(dtype)).astype(np.float64)
