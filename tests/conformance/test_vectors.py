"""Whole trajectories of published programs, reproduced in float64."""

import pathlib

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from tests.conformance.reference import Recording, base, replay

pytestmark = pytest.mark.usefixtures('float64')


def _ae_sam():
  return optax_sam.ae_sam(
    0.05, total_steps=24, decay=0.9, lambda_1=-1.0, lambda_2=1.0
  )


def _friendly_sam(decay, sigma=1.0):
  return lambda: optax_sam.friendly_sam(
    0.05, sigma=sigma, decay=decay, order='official'
  )


def _look_sam(**kwargs):
  return lambda: optax_sam.look_sam(0.1, period=5, alpha=0.7, **kwargs)


def _radius(t):
  return 0.1 - 0.09 * jnp.asarray(t, jnp.float64) / 24


def _learning_rate(t):
  progress = jnp.asarray(t, jnp.float64) / 24
  return 0.001 + 0.099 * (1 + jnp.cos(jnp.pi * progress)) / 2


# Recorded runs, the call that reproduces them, the tolerance on w.
TRAJECTORIES = [
  ('P1 P3 P3z P3t', 'sam_davda54', lambda: optax_sam.sam(0.05), 1e-10),
  ('P1 P3', 'asam_samsung', lambda: optax_sam.asam(0.5, eta=0.01), 1e-10),
  (
    'P1 P3 P3z P3t',
    'samadapt_davda54',
    lambda: optax_sam.asam(2.0, eta=0.0, scaled=True),
    1e-10,
  ),
  ('P1 P3', 'fsam06_nblt', _friendly_sam(0.6), 1e-10),
  ('P1 P3 P3z', 'fsam09_nblt', _friendly_sam(0.9), 1e-10),
  ('P1 P3', 'fsam06s05_nblt', _friendly_sam(0.6, sigma=0.5), 1e-10),
  ('P1 P3', 'looksam_numpy', _look_sam(), 1e-10),
  ('P1', 'looksam_kozistr', _look_sam(per_leaf=True), 1e-5),
  ('P1 P3', 'aesam_numpy', _ae_sam, 1e-10),
  (
    'P1',
    'ksam_numpy',
    lambda: optax_sam.k_sam(0.05, ascent=4, descent=8),
    1e-10,
  ),
  (
    'P1 P3 P3z P3t',
    'gsam_juntang',
    lambda: optax_sam.gsam(_radius, alpha=0.4),
    1e-10,
  ),
  ('P1 P3 P3z', 'wsamc_atorch', lambda: optax_sam.wsam(0.05), 1e-10),
  (
    'P1 P3 P3z P3t',
    'usam_tml',
    lambda: optax_sam.unnormalized_sam(0.05),
    1e-10,
  ),
  (
    'P1',
    'esamb1_dydjw9',
    lambda: optax_sam.esam(0.05, beta=1.0, gamma=7, key=0),
    1e-6,
  ),
  # Programs with a stabilizer of 1e-16, at a gradient next to 0.
  ('P3z', 'asam_samsung', lambda: optax_sam.asam(0.5, eta=0.01), 1e-8),
]
RUNS = [
  pytest.param(f'{problem}_{run}', method, tolerance, id=f'{problem}_{run}')
  for problems, run, method, tolerance in TRAJECTORIES
  for problem in problems.split()
]


@pytest.mark.parametrize(('name', 'method', 'tolerance'), RUNS)
def test_reproduces_trajectory(name, method, tolerance):
  recording = Recording(name)
  tx = optax.chain(method(), base())
  for t, (params, _) in enumerate(replay(recording, tx)):
    np.testing.assert_allclose(
      recording.flat(params), recording['w'][t + 1], rtol=0, atol=tolerance
    )


def test_gsam_couples_its_radius_to_the_learning_rate():
  recording = Recording('P3_gsamprop_juntang')
  radius = optax_sam.rho_like_learning_rate(
    _learning_rate, rho_max=0.1, rho_min=0.01, lr_max=0.1, lr_min=0.001
  )
  for t in range(recording.steps):
    np.testing.assert_allclose(_learning_rate(t), recording['lr'][t])
    np.testing.assert_allclose(radius(t), recording['rho_t'][t])
  tx = optax.chain(optax_sam.gsam(radius, alpha=0.4), base(_learning_rate))
  for t, (params, _) in enumerate(replay(recording, tx)):
    np.testing.assert_allclose(
      recording.flat(params), recording['w'][t + 1], rtol=0, atol=1e-10
    )


@pytest.mark.parametrize('problem', ['P1', 'P3'])
def test_decoupled_wsam_wraps_its_base(problem):
  recording = Recording(f'{problem}_wsam_atorch')
  tx = optax_sam.wsam_decoupled(base(), rho=0.05, gamma=0.9, learning_rate=0.1)
  for t, (params, _) in enumerate(replay(recording, tx)):
    np.testing.assert_allclose(
      recording.flat(params), recording['w'][t + 1], rtol=0, atol=1e-10
    )


def test_every_recorded_program_is_used():
  """A file that nothing reads would prove nothing."""
  folder = pathlib.Path(__file__).parent
  tests = ''.join(path.read_text() for path in folder.glob('test_*.py'))
  for path in (folder.parent / 'data' / 'vectors').glob('*.npz'):
    name = path.stem.partition('_')[2]
    assert name == 'problem' or name in tests or path.stem in tests, path.stem


def test_float32_decides_as_float64():
  """Decisions of AE-SAM and K-SAM have margins that float32 respects."""
  recording = Recording('P1_aesam_numpy')
  states = [s for _, s in replay(recording, optax.chain(_ae_sam(), base()))]
  took = [bool(optax_sam.metrics(s)['ascended']) for s in states]
  assert took == [bool(x) for x in recording['ae_use_sam']]


def test_ae_sam_keeps_the_recorded_moments():
  recording = Recording('P3_aesam_numpy')
  tx = optax.chain(_ae_sam(), base())
  for t, (_, state) in enumerate(replay(recording, tx)):
    found = optax_sam.metrics(state)
    recorded = {
      'policy/squared_norm': 'ae_gnorm2',
      'policy/mean': 'ae_mu',
      'policy/variance': 'ae_var',
      'policy/threshold': 'ae_threshold',
    }
    for ours, theirs in recorded.items():
      np.testing.assert_allclose(found[ours], recording[theirs][t], rtol=1e-9)


def test_friendly_sam_keeps_the_recorded_average():
  recording = Recording('P1_fsam06_nblt')
  tx = optax.chain(_friendly_sam(0.6)(), base())
  for t, (_, state) in enumerate(replay(recording, tx)):
    ema = state[0].perturbation[0].ema
    np.testing.assert_allclose(
      recording.flat(ema), recording['fsam_m'][t], rtol=0, atol=1e-11
    )


def test_look_sam_keeps_the_recorded_direction():
  recording = Recording('P1_looksam_numpy')
  tx = optax.chain(_look_sam()(), base())
  for t, (_, state) in enumerate(replay(recording, tx)):
    np.testing.assert_allclose(
      recording.flat(state[0].descent.direction),
      recording['looksam_gv'][t],
      rtol=0,
      atol=1e-11,
    )


@pytest.mark.parametrize(
  ('name', 'method'),
  [
    ('P3z_looksam_samhub', _look_sam()),
    ('P3z_gsam_samhub', lambda: optax_sam.gsam(_radius, alpha=0.4)),
  ],
)
def test_zero_gradient_perturbs_nothing(name, method):
  """Where a public port divides 0 by 0, ours takes the base step."""
  theirs = Recording(name)
  assert np.isnan(theirs['g_final']).any() or np.isnan(theirs['w']).any()
  tx = optax.chain(method(), base())
  for params, _ in replay(theirs, tx):
    assert np.isfinite(theirs.flat(params)).all()


@pytest.mark.parametrize(
  ('run', 'length'), [('P3t_sam_mipeng', 0.003), ('P3t_sam_samsung', 0.05)]
)
def test_stabilizer_is_1e_12(run, length):
  """At a gradient of 6.5e-9 other stabilizers give other lengths."""
  theirs = Recording(run)
  first = np.linalg.norm(theirs['eps'][0])
  np.testing.assert_allclose(first, length, rtol=0.02)
  piece = optax_sam.perturbations.scale_to_radius(0.05)
  gradient = theirs.tree(theirs['g'][0])
  epsilon, _ = piece.update(gradient, piece.init(gradient))
  size = np.linalg.norm(theirs['g'][0])
  np.testing.assert_allclose(
    np.linalg.norm(theirs.flat(epsilon)), 0.05 * size / (size + 1e-12)
  )
