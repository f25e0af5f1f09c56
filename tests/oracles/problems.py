"""Two small problems, in NumPy for the rules and in JAX for the library."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax


class Problem:
  """A problem whose parameters are a flat dict of arrays.

  Attributes:
    shapes: shape of every leaf by its name, in the order of JAX.
    slices: slices of the leaves in a vector of all weights.
    start: the initial vector of all weights.
    steps: number of training steps.
  """

  shapes: ClassVar = {}
  slices: ClassVar = {}
  steps = 10
  momentum = 0.9
  decay = 0.02

  @property
  def size(self):
    return len(self.start)

  def tree(self, vector):
    """Returns a vector of all weights as parameters."""
    vector = jnp.asarray(vector, float)
    return {
      name: vector[self.slices[name]].reshape(shape)
      for name, shape in self.shapes.items()
    }

  def flat(self, tree):
    """Returns the inverse of `tree`, in float64."""
    vector = np.zeros(self.size)
    for name, leaf in tree.items():
      vector[self.slices[name]] = np.asarray(leaf, np.float64).ravel()
    return vector

  def params(self):
    return self.tree(self.start)

  def batches(self):
    """Returns the batches of all steps, stacked along axis 0."""
    batches = [self.batch(t) for t in range(self.steps)]
    return jax.tree.map(
      lambda *leaves: jnp.asarray(np.stack(leaves), float), *batches
    )

  def rate(self, t):
    """Returns the learning rate of a step."""
    return 0.05 * 0.95 ** jnp.asarray(t).astype(float)

  def base(self):
    """Returns the base optimizer: SGD with momentum and weight decay."""
    return optax.chain(
      optax.add_decayed_weights(self.decay),
      optax.sgd(self.rate, momentum=self.momentum),
    )

  def training_step(self, tx, cast_over=None):
    """Returns the training step, with a gradient that is local to a device.

    Args:
      tx: the optimizer.
      cast_over: axis over which JAX would sum the gradient otherwise.
    """
    tx = optax.with_extra_args_support(tx)

    def step(params, opt_state, batch):
      mean = lambda p: jnp.mean(self.jax_losses(p, batch))
      local = params
      if cast_over is not None:
        local = jax.lax.pcast(params, cast_over, to='varying')
      updates, opt_state = tx.update(
        jax.grad(mean)(local),
        opt_state,
        params,
        value_fn=mean,
        per_example_value_fn=self.jax_losses,
        batch=batch,
      )
      return optax.apply_updates(params, updates), opt_state

    return step


def ascended(opt_state):
  """Returns whether the last step took the perturbed gradient."""
  return optax.tree_utils.tree_get(opt_state, 'ascended', jnp.bool_(True))


class Network(Problem):
  """A network with one hidden layer, and 64 examples per step."""

  shapes: ClassVar = {
    'bias': (8,),
    'kernel': (2, 2, 8),
    'offset': (),
    'out': (8,),
  }
  slices: ClassVar = {
    'bias': slice(0, 8),
    'kernel': slice(8, 40),
    'offset': slice(40, 41),
    'out': slice(41, 49),
  }
  examples = 64

  def __init__(self):
    numbers = np.sin(np.arange(1, 50))
    scale = np.repeat([0.1, 0.7, 0.1, 0.5], [8, 32, 1, 8])
    self.start = (scale * numbers).astype(np.float32).astype(np.float64)
    self._batches = self._draw()

  def _draw(self):
    """Draws batches in which the parts of eight devices differ."""
    random, rows = np.random.default_rng(0), np.arange(self.examples) // 8
    x = random.normal(size=(self.steps, self.examples, 4))
    x += 0.3 * np.sin(rows)[:, None]
    noise = random.normal(size=(self.steps, self.examples))
    y = np.sin(x.sum(axis=2)) + 0.1 * noise + np.cos(2.0 * rows)
    # The sharpness varies between steps.
    weight = 1 + 0.8 * np.sin(1.9 * np.arange(self.steps))
    batches = {
      'weight': weight[:, None] + np.zeros_like(y),
      'x': x.reshape(*x.shape[:2], 2, 2),
      'y': y,
    }
    return {name: leaf.astype(np.float32) for name, leaf in batches.items()}

  def batch(self, t):
    return {k: v[t].astype(np.float64) for k, v in self._batches.items()}

  def jax_losses(self, params, batch):
    """Returns the weighted per-example squared errors."""
    hidden = jnp.tensordot(batch['x'], params['kernel'], 2)
    hidden = jnp.tanh(hidden + params['bias'][None])
    error = hidden @ params['out'] + params['offset'] - batch['y']
    return batch['weight'] * jnp.square(error)

  def losses(self, w, batch):
    return self._forward(w, batch)[0]

  def _forward(self, w, batch):
    x = batch['x'].reshape(-1, 4)
    kernel = w[self.slices['kernel']].reshape(4, 8)
    hidden = np.tanh(x @ kernel + w[self.slices['bias']])
    error = hidden @ w[self.slices['out']] + w[self.slices['offset']]
    error = error - batch['y']
    return batch['weight'] * error**2, hidden, error

  def gradient(self, w, batch):
    """Returns the gradient of the mean loss."""
    _, hidden, error = self._forward(w, batch)
    at_error = 2 * batch['weight'] * error / len(error)
    out = w[self.slices['out']]
    before_tanh = np.outer(at_error, out) * (1 - hidden**2)
    kernel = batch['x'].reshape(-1, 4).T @ before_tanh
    return np.concatenate(
      [
        before_tanh.sum(axis=0),
        kernel.ravel(),
        [at_error.sum()],
        hidden.T @ at_error,
      ]
    )


class Quartic(Problem):
  """The problem of the golden values: one new example per step."""

  shapes: ClassVar = {'fc.bias': (3,), 'fc.weight': (2, 3), 'norm.weight': (3,)}
  slices: ClassVar = {
    'fc.bias': slice(9, 12),
    'fc.weight': slice(0, 6),
    'norm.weight': slice(6, 9),
  }
  steps = 3
  decay = 0.01
  curvature = np.linspace(0.5, 3, 12)
  start = 0.8 * np.sin(np.arange(1, 13))

  def rate(self, t):
    del t
    return 0.05

  def batch(self, t):
    return {'direction': np.cos(t + 0.7 * np.arange(12))[None]}

  def jax_losses(self, params, batch):
    names = ('fc.weight', 'norm.weight', 'fc.bias')
    w = jnp.concatenate([params[name].ravel() for name in names])
    return self.losses(w, batch)

  def losses(self, w, batch):
    own = (self.curvature * w**2 / 2 + 0.05 * w**4).sum()
    return own + (batch['direction'] @ w - 1) ** 2 / 2

  def gradient(self, w, batch):
    (direction,) = batch['direction']
    own = self.curvature * w + 0.2 * w**3
    return own + (direction @ w - 1) * direction


NETWORK, QUARTIC = Network(), Quartic()
