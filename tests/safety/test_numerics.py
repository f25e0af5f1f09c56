"""Scale of the loss, precision, counters and radii."""

import decimal
import fractions
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam import descents, perturbations, policies
from optax_sam.engine import info
from optax_sam.methods import sparse_sam_dynamic
from optax_sam.trees import tree_math
from tests.contracts import comparisons, table, training
from tests.methods import checks
from tests.oracles import ae_sam

A = np.diag([4.0, 2.0, 1.0])
W = np.array([3.0, -1.0, 2.0])
# The published rules depend on the scale of the loss.
DEPENDS_ON_SCALE = (
  'b_sam',
  'entropy_sgd',
  'fisher_sam',
  'frob_sam',
  'gradient_norm_penalty of unit length',
  'le_sam',
  'look_layer_sam',
  'look_layer_sam layer',
  'sagm',
  'tsam',
  'unnormalized_sam',
  'unnormalized_sam clipped',
)


def _direction(method, factor, dtype=jnp.float32):
  """Returns the direction of one step on `factor * w A w / 2`."""
  w, a = jnp.asarray(W, dtype), jnp.asarray(A, dtype)
  loss = lambda w: 0.5 * jnp.asarray(factor, dtype) * (w @ a @ w)
  given = jax.grad(loss)(w), method.init(w), w
  return method.update(*given, value_fn=loss)[0] / factor


@pytest.mark.parametrize(
  'factor', [1.0, 1e-9, 1e-13, 1e-20, 1e20, 1e-30, 1e30, 1e-36, 1e36]
)
def test_the_scale_of_the_loss_does_not_change_the_direction(factor):
  gradient = A @ W
  expected = A @ (W + 0.5 * gradient / np.linalg.norm(gradient))
  found = _direction(optax_sam.sam(0.5), factor)
  np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('factor', [1e-300, 1e-200, 1e-20, 1e150, 1e290])
def test_the_scale_of_the_loss_does_not_change_the_direction_in_float64(factor):
  gradient = A @ W
  expected = A @ (W + 0.5 * gradient / np.linalg.norm(gradient))
  found = _direction(optax_sam.sam(0.5), factor, jnp.float64)
  np.testing.assert_allclose(found, expected, rtol=1e-12)


@table.every_row(lambda row: row.name not in DEPENDS_ON_SCALE)
def test_no_method_depends_on_the_scale_of_the_loss(name):
  """The scales from 1e-15 to 1e15 are powers of two: no rounding."""
  row = table.ROWS[name]

  # The factor is an argument, so that one program is compiled for all scales.
  @jax.jit
  def step(params, state, batch, factor):
    rate = {'learning_rate': 0.1 / factor} if name == 'wsam_decoupled' else {}
    tx = row.whole(0.1, base=lambda: optax.sgd(0.1 / factor), **rate)
    losses = lambda p, batch: factor * training.losses(p, batch)
    return training.training_step(tx, losses)(params, state, batch)

  paths = []
  for exponent in (0, -50, 50):
    state = training.start(row.whole(0.1, base=lambda: optax.sgd(0.1)))
    for t in range(4):
      state = step(*state, training.batch(t), 2.0**exponent)
    paths.append(state[0])
  for path in paths[1:]:
    comparisons.assert_close(path, paths[0], 2e-6)


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16', 'float32'])
def test_norms_of_all_magnitudes_are_accurate(dtype):
  rng = np.random.default_rng(0)
  numbers = rng.standard_normal((3, 40)).astype(np.float32)
  limits = jnp.finfo(dtype)
  norm = jax.jit(tree_math.norm)
  for exponent in range(limits.minexp + 8, limits.maxexp - 8, 5):
    tree = [
      jnp.asarray(x, dtype) * jnp.asarray(2.0**exponent, dtype) for x in numbers
    ]
    exact = np.sqrt(sum(np.sum(np.float64(x) ** 2) for x in tree))
    np.testing.assert_allclose(norm(tree), exact, rtol=2e-6)
  for bad in (np.inf, -np.inf, np.nan):
    assert not np.isfinite(norm([jnp.asarray([1.0, bad], dtype)]))
  assert norm([jnp.zeros(3, dtype)]) == 0
  mixed = jnp.asarray([3e30, 4e30, 1e-30, 1.0], jnp.float32)
  np.testing.assert_allclose(norm(mixed), 5e30, rtol=1e-6)


SCALES = [1e-15, 1e-10, 1e-5, 1.0, 1e5, 1e10, 1e15]


def _norms(steps):
  return np.exp(np.random.default_rng(7).standard_normal(steps) / 2)


@pytest.mark.parametrize('scale', SCALES)
@pytest.mark.parametrize('name', ['ae_sam', 'ae_look_sam'])
def test_ae_sam_makes_the_same_decisions_at_any_scale(name, scale):
  steps, past, expected = 60, (0.0, 0.0), []
  low, high = (-1.0, 1.0) if name == 'ae_sam' else (0.0, 2.0)
  for t, size in enumerate(_norms(steps)):
    factor = t / steps * low + (1 - t / steps) * high
    past, ascends = ae_sam.moments_and_decision(size**2, past, factor)
    expected.append(ascends)
  gradients = jnp.asarray(scale * _norms(steps)[:, None], jnp.float32)
  tx = getattr(optax_sam, name)(total_steps=steps)
  np.testing.assert_array_equal(checks.decisions(tx, gradients), expected)
  assert 5 < sum(expected) < 55


def test_ae_sam_adapts_to_a_loss_whose_scale_changes():
  """Moments are finite and accurate after factors of 1e-20 and 1e40."""
  policy = policies.on_sharp_gradients(100, initial_variance=math.exp(-10))
  state, decide = policy.init(jnp.zeros(1)), jax.jit(policy.decide)
  for scale in [1.0] * 3 + [1e-20] * 3 + [1e20] * 3 + [0.0] * 3 + [1.0]:
    _, state = decide(jnp.full(1, scale), state)
    assert comparisons.all_finite(state)
  exact = 0.1 * (1 + 1e40 * (0.9 + 0.9**2 + 0.9**3) * 0.9**3)
  unit = np.float64(state.unit) ** 2
  np.testing.assert_allclose(np.float64(state.mean) * unit, exact, rtol=1e-5)


def _pi():
  """Returns pi to fifty digits, by Machin's formula."""
  inverse = lambda n: sum(
    (-1) ** k / decimal.Decimal((2 * k + 1) * n ** (2 * k + 1))
    for k in range(60)
  )
  return 4 * (4 * inverse(5) - inverse(239))


def _exactly_moved(active, t, total, rate):
  """Returns floor(a * r / 2 * (1 + cos(pi t / T))) to fifty digits."""
  with decimal.localcontext(prec=50):
    angle, term, cosine = _pi() * min(t, total) / total, decimal.Decimal(1), 0
    for k in range(60):
      cosine += term
      term *= -angle * angle / ((2 * k + 1) * (2 * k + 2))
    fraction = fractions.Fraction(str(rate)) * active / 2
    fraction = decimal.Decimal(fraction.numerator) / fraction.denominator
    moved = fraction * (1 + cosine)
    # Whole numbers have an error of 1e-40.
    return math.floor(moved + decimal.Decimal('1e-35'))


def test_sparse_sam_moves_the_exact_number():
  rng = np.random.default_rng(1)
  cases = [(18, 10, 1.0, 1), (32, 3, 0.5, 1), (30, 12, 0.1, 5)]
  for _ in range(60):
    active = int(10 ** rng.uniform(0, 8))
    total, every = int(rng.integers(1, 40)), int(rng.integers(1, 4))
    cases.append((active, total, round(rng.uniform(0.01, 1), 2), every))
  for active, total, rate, every in cases:
    steps = range(0, total + every, every)
    found = sparse_sam_dynamic._moved(steps, active, rate, total)
    expected = [_exactly_moved(active, t, total, rate) for t in steps]
    np.testing.assert_array_equal(found, expected, (active, total, rate))


@pytest.mark.parametrize('injected', [False, True])
@pytest.mark.parametrize(
  ('entries', 'step', 'total', 'rate', 'moved'),
  [(36, 5, 10, 1.0, 9), (64, 2, 3, 0.5, 4)],
)
def test_sparse_sam_moves_whole_numbers(
  entries, step, total, rate, moved, injected
):
  perturbation = perturbations.keep_dynamic(
    0.5,
    drop_rate=jnp.float32(rate) if injected else rate,
    refresh_every=1,
    total_steps=total,
    key=0,
  )
  x = jnp.arange(1.0, entries + 1.0)
  state = perturbation.init(x)._replace(step_count=jnp.int32(step))
  _, after = jax.jit(perturbation.update)(x, state, x)
  assert int((state.mask & ~after.mask).sum()) == moved


def test_counters_saturate_at_the_largest_integer():
  most = jnp.int32(2**31 - 1)
  state = checks.with_fields(
    info.first_state(jnp.ones(2)), step_count=most, second_gradients=most
  )
  for ascended in (True, False):
    after = info.advance(state, jnp.float32(1), None, ascended=ascended)
    assert after.step_count == after.info.second_gradients == most
    assert after.info.second_gradients.dtype == jnp.int32


@table.every_method(lambda row: row.radius or row.name == 'entropy_sgd')
@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_half_precision_warns_once(name, dtype):
  tx, params = table.ROWS[name].whole(), training.params(dtype)
  for init in (tx.init, lambda p: jax.eval_shape(tx.init, p)):
    with pytest.warns(UserWarning, match='keep the parameters in float32') as w:
      init(params)
    assert len(w) == 1
    assert f'params hold {dtype} at ' in str(w[0].message)


@pytest.mark.filterwarnings('error')
def test_leaves_that_are_not_perturbed_do_not_warn():
  params = {
    'half': jnp.ones(2, jnp.bfloat16),
    'eighth': jnp.ones(2, jnp.float8_e4m3fn),
    'whole': jnp.ones(2),
    'count': jnp.ones(2, jnp.int8),
  }
  mask = {'half': False, 'eighth': False, 'whole': True, 'count': True}
  optax_sam.sam(mask=mask).init(params)
  with pytest.warns(UserWarning, match='float8_e4m3fn at .eighth'):
    optax_sam.sam(mask={**mask, 'eighth': True}).init(params)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize(
  ('adaptive', 'minimize_fp'),
  [(False, True), (True, True), (False, False), (True, False)],
)
def test_sixty_steps_equal_the_trainer_in_big_vision(adaptive, minimize_fp):
  """That trainer counts from 1 for the radius, and from 0 in the optimizer."""
  rate = lambda t: 0.05 * (1 - jnp.asarray(t, float) / 61)
  gradient = lambda w: A @ w + 0.3 * w**3
  w, path = W.copy(), []
  for t in range(60):
    fraction = (float(rate(t + 1)) - 0.0005) / (0.05 - 0.0005)
    rho, g = 0.02 + (0.3 - 0.02) * fraction, gradient(w)
    epsilon = rho * g / np.linalg.norm(g) * (np.abs(w) if adaptive else 1)
    gp = gradient(w + epsilon)
    if minimize_fp:
      unit = gp / np.linalg.norm(gp)
      u = gp - 0.4 * (g - (unit @ g) * unit)
    else:
      unit = g / np.linalg.norm(g)
      u = g + 0.4 * (gp - (unit @ gp) * unit)
    w = w - float(rate(t)) * u
    path.append(w)
  rho = optax_sam.rho_like_learning_rate(
    lambda t: rate(t + 1), rho_max=0.3, rho_min=0.02, lr_max=0.05, lr_min=0.0005
  )
  method = optax_sam.gsam(rho, adaptive=adaptive, minimize_fp=minimize_fp)
  tx = optax.chain(method, optax.sgd(rate))
  grad_fn = lambda w: jnp.asarray(A) @ w + 0.3 * w**3

  @jax.jit
  def step(w, state):
    u, state = tx.update(grad_fn(w), state, w, grad_fn=grad_fn)
    return w + u, state

  w = jnp.asarray(W)
  state = tx.init(w)
  for expected in path:
    w, state = step(w, state)
    np.testing.assert_allclose(w, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize('wrong', ['yes', 2, None])
def test_options_of_gsam_that_are_not_bools_raise(wrong):
  with pytest.raises(ValueError, match='adaptive must be one of True, False'):
    optax_sam.gsam(adaptive=wrong)
  with pytest.raises(ValueError, match='minimize_fp must be one of True'):
    descents.surrogate_gap(minimize_fp=wrong)
