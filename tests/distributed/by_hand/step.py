"""One step in NumPy, as all devices see it, and the arithmetic of its rows.

One row of an array is what one device holds: gradients, perturbations and
directions are of shape (devices, weights), in float64. Weights are flat, leaf
after leaf in the order of JAX.
"""

import jax
import numpy as np

LEAVES = {
  'bias': slice(0, 8),
  'kernel': slice(8, 40),
  'offset': slice(40, 41),
  'out': slice(41, 49),
}

SIZE = 49


def flat(tree):
  """Joins the leaves of a tree."""
  leaves = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)]
  return np.concatenate(leaves)


def norm(rows):
  return np.sqrt(np.sum(np.square(rows), axis=-1, keepdims=True))


def dot(left, right):
  return np.sum(left * right, axis=-1, keepdims=True)


def of_length(radius, rows):
  size = norm(rows)
  return radius * rows / np.where(size > 0, size, 1)


def by_leaf(function, *rows):
  """Applies a function leaf by leaf."""
  parts = [function(*(x[..., leaf] for x in rows)) for leaf in LEAVES.values()]
  return np.concatenate(parts, axis=-1)


def losses(w, batch):
  """Returns the losses of the examples, and what a gradient needs."""
  kernel = w[LEAVES['kernel']].reshape(4, 8)
  hidden = np.tanh(batch['x'] @ kernel + w[LEAVES['bias']])
  error = hidden @ w[LEAVES['out']] + w[LEAVES['offset']] - batch['y']
  return batch['weight'] * error**2, hidden, error


def gradient(w, batch):
  """Returns the gradient of the mean loss."""
  _, hidden, error = losses(w, batch)
  at_error = 2 * batch['weight'] * error / len(error)
  before_tanh = np.outer(at_error, w[LEAVES['out']]) * (1 - hidden**2)
  return np.concatenate(
    [
      before_tanh.sum(axis=0),
      (batch['x'].T @ before_tanh).ravel(),
      [at_error.sum()],
      hidden.T @ at_error,
    ]
  )


class Step:
  """One step, as all devices see it.

  Attributes:
    w: the parameters.
    parts: the batch of every device.
    t: number of the step, from 0.
    memory: what a method keeps from step to step.
  """

  def __init__(self, w, batch, t, memory, *, devices, sync):
    rows = np.split(np.arange(len(batch['y'])), devices)
    self.w, self.t, self.memory, self.sync = w, t, memory, sync
    self.parts = [{k: v[i] for k, v in batch.items()} for i in rows]
    memory.setdefault('ascended', []).append(True)

  def gradients(self, points=0.0, rows=None):
    """Returns every device's gradient at its own point, of some of its rows."""
    points = np.broadcast_to(points, (len(self.parts), SIZE))
    rows = [slice(None)] * len(self.parts) if rows is None else rows
    parts = zip(self.parts, rows, strict=True)
    return np.stack(
      [
        gradient(self.w + point, {k: v[i] for k, v in part.items()})
        for point, (part, i) in zip(points, parts, strict=True)
      ]
    )

  def shared(self, rows):
    """Averages over the devices if ascent gradients are."""
    return mean(rows) if self.sync else rows

  def ascent(self, points=0.0, rows=None):
    """Returns the gradients that the devices ascend with."""
    return self.shared(self.gradients(points, rows))

  def losses(self, points=0.0):
    """Returns the losses of every device's examples at its own point."""
    points = np.broadcast_to(points, (len(self.parts), SIZE))
    pairs = zip(points, self.parts, strict=True)
    return [losses(self.w + point, part)[0] for point, part in pairs]

  def skips(self, ascends):
    """Notes the decision; returns whether it is not to ascend."""
    self.memory['ascended'][-1] = bool(ascends)
    return not ascends


def mean(rows):
  return np.broadcast_to(rows.mean(axis=0), rows.shape)


def largest(scores, size):
  return np.argsort(-scores, kind='stable')[:size]


def count(size, rows):
  return size if isinstance(size, int) else max(1, round(size * rows))
