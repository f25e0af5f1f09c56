"""Recorded runs of published programs, as pytrees of this library."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

_VECTORS = pathlib.Path(__file__).parent.parent / 'data' / 'vectors'


class Recording:
  """One recorded run: its problem, and the numbers of every step."""

  def __init__(self, name):
    problem = name.split('_')[0]
    self.problem = dict(np.load(_VECTORS / f'{problem}_problem.npz'))
    run = np.load(_VECTORS / f'{name}.npz', allow_pickle=False)
    self.settings = json.loads(str(run['meta']))
    self.arrays = {
      key.removeprefix('mom.'): run[key] for key in run if key != 'meta'
    }
    self.is_classifier = problem == 'P1'

  def __getitem__(self, key):
    return self.arrays[key]

  @property
  def steps(self):
    return len(self['loss'])

  def tree(self, flat):
    """Turns a flat vector in torch layout into a pytree in Flax layout."""
    flat = jnp.asarray(flat)
    if not self.is_classifier:
      return {'layer': {'kernel': flat.reshape(10, 1)}}
    w1, b1, w2, b2 = jnp.split(flat, [48, 56, 80])
    return {
      'fc1': {'kernel': w1.reshape(8, 6).T, 'bias': b1},
      'fc2': {'kernel': w2.reshape(3, 8).T, 'bias': b2},
    }

  def flat(self, tree):
    """The inverse of `tree`."""
    if not self.is_classifier:
      return np.asarray(tree['layer']['kernel']).ravel()
    parts = [
      tree['fc1']['kernel'].T,
      tree['fc1']['bias'],
      tree['fc2']['kernel'].T,
      tree['fc2']['bias'],
    ]
    return np.concatenate([np.asarray(part).ravel() for part in parts])

  def batch(self, step):
    """The batch of a step; P3 has no data, so one example stands for it."""
    if not self.is_classifier:
      return {'x': jnp.zeros((1, 1))}
    return {
      'x': jnp.asarray(self.problem['X'][step]),
      'y': jnp.asarray(self.problem['y'][step]),
    }

  def losses(self, params, batch):
    """The loss of every example of a batch."""
    if not self.is_classifier:
      return self._quartic(params)[None]
    hidden = jnp.tanh(
      batch['x'] @ params['fc1']['kernel'] + params['fc1']['bias'][None]
    )
    logits = hidden @ params['fc2']['kernel'] + params['fc2']['bias'][None]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch['y'])

  def _quartic(self, params):
    shift = params['layer']['kernel'].ravel() - self.problem['c']
    quadratic = 0.5 * shift @ jnp.asarray(self.problem['A']) @ shift
    quartic = 0.25 * jnp.sum(self.problem['q'] * shift**4)
    return self.problem['f0'] + quadratic + quartic


def base(learning_rate=0.1):
  """The base optimizer of every recorded run."""
  return optax.chain(
    optax.add_decayed_weights(5e-4), optax.sgd(learning_rate, momentum=0.9)
  )


def replay(recording, tx, params=None):
  """Runs the uniform training step; yields (params, opt_state) per step."""
  params = recording.tree(recording['w'][0]) if params is None else params
  opt_state = tx.init(params)

  @jax.jit
  def step(params, opt_state, batch):
    value_fn = lambda p: jnp.mean(recording.losses(p, batch))
    grads = jax.grad(value_fn)(params)
    updates, opt_state = tx.update(
      grads,
      opt_state,
      params,
      value_fn=value_fn,
      per_example_value_fn=recording.losses,
      batch=batch,
    )
    return optax.apply_updates(params, updates), opt_state

  for t in range(recording.steps):
    params, opt_state = step(params, opt_state, recording.batch(t))
    yield params, opt_state
