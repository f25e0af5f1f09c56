"""Whole runs of published programs, reproduced in float64.

Every run is reproduced twice: as a whole, and with each step started at the
recorded parameters, so that errors of earlier steps don't matter.
"""

import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam import perturbations, policies
from tests.conformance.reference import Recording, Replay, base

pytestmark = pytest.mark.usefixtures('float64')


def _ae_sam():
  return optax_sam.ae_sam(
    0.05, total_steps=24, decay=0.9, lambda_1=-1.0, lambda_2=1.0
  )


def _k_sam():
  return optax_sam.k_sam(0.05, ascent=4, descent=8)


def _friendly_sam(decay, sigma=1.0):
  return lambda: optax_sam.friendly_sam(
    0.05, sigma=sigma, decay=decay, order='official'
  )


def _look_sam(**kwargs):
  return lambda: optax_sam.look_sam(0.1, period=5, alpha=0.7, **kwargs)


def _asam():
  return optax_sam.asam(0.5, eta=0.01)


def _gsam():
  return optax_sam.gsam(_radius, alpha=0.4)


def _radius(t):
  return 0.1 - 0.09 * jnp.asarray(t, jnp.float64) / 24


def _learning_rate(t):
  progress = jnp.asarray(t, jnp.float64) / 24
  return 0.001 + 0.099 * (1 + jnp.cos(jnp.pi * progress)) / 2


_COUPLED = optax_sam.rho_like_learning_rate(
  _learning_rate, rho_max=0.1, rho_min=0.01, lr_max=0.1, lr_min=0.001
)


class Run(NamedTuple):
  """Recorded runs and the call that reproduces them.

  Attributes:
    problems: names of the recorded problems.
    name: name of method and published program.
    method: builds the method.
    tolerance: tolerance of the parameters over the whole run.
    fed: tolerance of a step that starts at the recorded parameters.
    optimizer: builds the base optimizer.
  """

  problems: str
  name: str
  method: Callable[[], Any]
  tolerance: float = 1e-10
  fed: float = 1e-12
  optimizer: Callable[[], Any] = base


RUNS = [
  Run('P1 P3 P3z P3t', 'sam_davda54', lambda: optax_sam.sam(0.05)),
  Run(
    'P1 P3 P3z P3t',
    'samadapt_davda54',
    lambda: optax_sam.asam(2.0, eta=0.0, scaled=True),
  ),
  Run('P1 P3', 'fsam06_nblt', _friendly_sam(0.6)),
  Run('P1 P3 P3z', 'fsam09_nblt', _friendly_sam(0.9)),
  Run('P1 P3', 'fsam06s05_nblt', _friendly_sam(0.6, sigma=0.5)),
  Run('P1 P3', 'looksam_numpy', _look_sam()),
  Run('P1 P3', 'aesam_numpy', _ae_sam),
  Run('P1', 'ksam_numpy', _k_sam),
  # They add 1e-12 to the denominator of a cosine.
  Run('P1 P3 P3z P3t', 'gsam_juntang', _gsam, fed=2e-12),
  Run(
    'P3',
    'gsamprop_juntang',
    lambda: optax_sam.gsam(_COUPLED, alpha=0.4),
    fed=2e-12,
    optimizer=lambda: base(_learning_rate),
  ),
  Run('P1 P3 P3z', 'wsamc_atorch', lambda: optax_sam.wsam(0.05)),
  Run(
    'P1 P3',
    'wsam_atorch',
    lambda: optax_sam.wsam_decoupled(
      base(), rho=0.05, gamma=0.9, learning_rate=0.1
    ),
    optimizer=optax.identity,
  ),
  Run('P1 P3 P3z P3t', 'usam_tml', lambda: optax_sam.unnormalized_sam(0.05)),
  # They have a stabilizer of 1e-16, which matters at a tiny gradient.
  Run('P1 P3', 'asam_samsung', _asam, fed=5e-12),
  Run('P3z', 'asam_samsung', _asam, 2e-9, 2e-8),
  # They have a stabilizer of 1e-8 for a reused direction.
  Run('P1', 'looksam_kozistr', _look_sam(per_leaf=True), 5e-6, 5e-6),
  # They have a stabilizer of 1e-7, and a strict comparison of losses.
  Run(
    'P1',
    'esamb1_dydjw9',
    lambda: optax_sam.esam(0.05, beta=1.0, gamma=7, key=0),
    1e-6,
    1e-6,
  ),
]
CASES = {
  f'{problem}_{run.name}': run
  for run in RUNS
  for problem in run.problems.split()
}


def _kept(recording, state):
  """Returns the recorded state in the form of our state."""
  found = optax_sam.metrics(state)
  kept = {
    'ae_gnorm2': 'policy/squared_norm',
    'ae_mu': 'policy/mean',
    'ae_var': 'policy/variance',
    'ae_threshold': 'policy/threshold',
    'ae_use_sam': 'ascended',
  }
  kept = {key: found[name] for key, name in kept.items() if name in found}
  if 'fsam_m' in recording.arrays:
    ema = optax.tree_utils.tree_get(state, 'ema')
    kept['fsam_m'] = recording.flat(ema)
  if 'looksam_gv' in recording.arrays:
    direction = optax.tree_utils.tree_get(state, 'direction')
    kept['looksam_gv'] = recording.flat(direction)
  return {key: x for key, x in kept.items() if key in recording.arrays}


def _unit(recording, vector, *, per_leaf):
  """Returns a recorded vector with norm 1, as in our state."""
  if not per_leaf:
    return vector / (np.linalg.norm(vector) or 1)
  leaves, structure = jax.tree.flatten(recording.tree(vector))
  leaves = [x / (np.linalg.norm(x) or 1) for x in leaves]
  return recording.flat(structure.unflatten(leaves))


@pytest.mark.parametrize('name', CASES)
def test_the_recorded_run_is_reproduced(name):
  recording, run = Recording(name), CASES[name]
  replay = Replay(recording, run.method(), run.optimizer(), watched=True)
  for t, step in enumerate(replay.run()):
    np.testing.assert_allclose(
      step.params, recording['w'][t + 1], rtol=0, atol=run.tolerance
    )
  for t, step in enumerate(replay.run(fed=True)):
    if t == 0 and name.startswith('P3z'):
      assert not step.epsilon.any()  # exactly
    expected = {'eps': (step.epsilon, recording['eps'][t])}
    if run.optimizer is not optax.identity:
      expected['g_final'] = (step.direction, recording['g_final'][t])
    for key, found in _kept(recording, step.state).items():
      recorded = recording[key][t]
      if key == 'looksam_gv':
        recorded = _unit(recording, recorded, per_leaf='kozistr' in name)
      expected[key] = (found, recorded)
    for key, pair in expected.items():
      np.testing.assert_allclose(*pair, rtol=0, atol=run.fed, err_msg=key)


def test_the_radius_uses_the_step_of_the_learning_rate():
  recording = Recording('P3_gsamprop_juntang')
  for t in range(recording.steps):
    np.testing.assert_allclose(_learning_rate(t), recording['lr'][t])
    np.testing.assert_allclose(_COUPLED(t), recording['rho_t'][t])


@pytest.mark.parametrize('problem', ['P1', 'P3'])
def test_another_initial_variance_makes_the_same_decisions(problem):
  """A derived program starts at e^-10; ours at 0, for any scale of the loss."""
  recording = Recording(f'{problem}_aesam_numpy')
  method = optax_sam.sharpness_aware(
    perturbations.scale_to_radius(0.05),
    policy=policies.on_sharp_gradients(24, initial_variance=math.exp(-10)),
  )
  for t, step in enumerate(Replay(recording, method).run()):
    ascended = optax_sam.metrics(step.state)['ascended']
    assert bool(ascended) == recording['ae_use_sam'][t]
    np.testing.assert_allclose(
      step.params, recording['w'][t + 1], rtol=0, atol=1e-10
    )


@pytest.mark.parametrize(
  ('name', 'method'),
  [
    ('P1_aesam_numpy', _ae_sam),
    ('P3_aesam_numpy', _ae_sam),
    ('P1_ksam_numpy', _k_sam),
  ],
)
def test_float32_makes_the_decisions_of_float64(name, method):
  """Other decisions would change the parameters by far more."""
  recording = Recording(name)
  with jax.enable_x64(False):
    for t, step in enumerate(Replay(recording, method()).run()):
      assert step.params.dtype == np.float32
      np.testing.assert_allclose(
        step.params, recording['w'][t + 1], rtol=0, atol=1e-4
      )
      if 'ae_use_sam' in recording.arrays:
        ascended = optax_sam.metrics(step.state)['ascended']
        assert bool(ascended) == recording['ae_use_sam'][t]


def test_every_recording_is_used():
  """A file that no test reads would prove nothing."""
  folder = pathlib.Path(__file__).parents[1]
  tests = ''.join(path.read_text() for path in folder.rglob('test_*.py'))
  for path in (folder / 'data' / 'vectors').glob('*.npz'):
    name = path.stem
    assert name.endswith('_problem') or name in CASES or name in tests, name
