"""Recorded runs of published programs, as pytrees of this library."""

import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

_VECTORS = pathlib.Path(__file__).parent.parent / 'data' / 'vectors'


class Recording:
  """One recorded run: its problem and the numbers of every step."""

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
    """Converts a flat vector in torch layout to a pytree in Flax layout."""
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
    """The batch of a step; P3 has no data, so it gets one dummy example."""
    if not self.is_classifier:
      return {'x': jnp.zeros((1, 1))}
    return {
      'x': jnp.asarray(self.problem['X'][step]),
      'y': jnp.asarray(self.problem['y'][step]),
    }

  def losses(self, params, batch):
    """The per-example losses of a batch."""
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


class Step(NamedTuple):
  """The results of one step, trees as flat vectors in torch layout.

  Attributes:
    start: parameters before the step.
    clean: unperturbed gradient.
    epsilon: the largest perturbation at which the loss was evaluated; None if
      not recorded.
    direction: the update that the method returned.
    params: parameters after the step.
    state: state of the method.
  """

  start: np.ndarray
  clean: np.ndarray
  epsilon: np.ndarray | None
  direction: np.ndarray
  params: np.ndarray
  state: Any


class Replay:
  """The training step on a recorded problem, compiled once."""

  def __init__(self, recording, method, optimizer=None, *, watched=False):
    self._recording = recording
    self._method = optax.with_extra_args_support(method)
    self._optimizer = base() if optimizer is None else optimizer
    self._watched = watched
    self._points = []
    self._step = jax.jit(self._uniform_step)

  def _losses(self, params, batch):
    if self._watched:
      # As integers, because a callback may run in a thread without float64.
      bits = jax.tree.map(
        lambda x: jax.lax.bitcast_convert_type(x, jnp.uint32), params
      )
      jax.debug.callback(self._points.append, bits)
    return self._recording.losses(params, batch)

  def _uniform_step(self, params, state, opt_state, batch):
    grads = jax.grad(lambda p: jnp.mean(self._recording.losses(p, batch)))(
      params
    )
    direction, state = self._method.update(
      grads, state, params, per_example_value_fn=self._losses, batch=batch
    )
    updates, opt_state = self._optimizer.update(direction, opt_state, params)
    params = optax.apply_updates(params, updates)
    return grads, direction, params, state, opt_state

  def run(self, *, fed=False):
    """Yields every step; with `fed` each starts at the recorded parameters."""
    recording = self._recording
    params = recording.tree(recording['w'][0])
    state = self._method.init(params)
    opt_state = self._optimizer.init(params)
    for t in range(recording.steps):
      if fed:
        params = recording.tree(recording['w'][t])
      start = recording.flat(params)
      clean, direction, params, state, opt_state = self._step(
        params, state, opt_state, recording.batch(t)
      )
      yield Step(
        start,
        recording.flat(clean),
        self._largest_perturbation(start),
        recording.flat(direction),
        recording.flat(params),
        state,
      )

  def _largest_perturbation(self, start):
    if not self._watched:
      return None
    jax.effects_barrier()
    points = jax.tree.map(
      lambda bits: np.asarray(bits).view(np.float64)[..., 0], self._points
    )
    self._points.clear()
    moved = [self._recording.flat(point) - start for point in points]
    return max(moved, key=np.linalg.norm, default=np.zeros_like(start))
