"""What follows from the rules: orthogonality, noise, bad examples, counts.

Some of it has its tests elsewhere: the share of ascents and calls of `grad_fn`
in `tests/test_skipping.py`; gradients that are zero or not finite, checkpoints
and schedules in `tests/contracts`; batch norm in `tests/test_flax.py`; replicas
in `tests/distributed`.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam import descents, perturbations
from tests.conformance.reference import Recording, Replay

pytestmark = pytest.mark.usefixtures('float64')
RHO = 0.3
NORM = np.linalg.norm


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_reused_part_is_orthogonal_and_as_long_as_asked(dtype):
  recording = Recording('P1_sam_davda54')
  with jax.enable_x64(False):
    clean, perturbed = (
      jax.tree.map(lambda x: x.astype(dtype), recording.tree(recording[key][0]))
      for key in ('g', 'g_final')
    )
    descent = descents.reuse_orthogonal(0.3)
    _, state = descent.on_ascent(clean, perturbed, descent.init(clean))
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), clean)
    direction, _ = descent.on_skip(wide, state)
    part, g, u = (
      recording.flat(tree).astype(np.float64)
      for tree in (state.direction, wide, direction)
    )
    ratio = float(state.ratio)
  assert abs(part @ g) / NORM(part) / NORM(g) < 1e-5
  np.testing.assert_allclose(NORM(u - g), 0.3 * NORM(g), rtol=1e-5)
  np.testing.assert_allclose(NORM(part), 1, rtol=1e-5)
  gp = recording.flat(perturbed).astype(np.float64)
  orthogonal = gp - (gp @ g) / (g @ g) * g
  np.testing.assert_allclose(ratio, NORM(orthogonal) / NORM(g), rtol=1e-5)


@pytest.mark.parametrize(
  ('sigma', 'official'), [(1.0, 1.0), (0.5, 0.5 * 0.9 / (1 - 0.5 * 0.1))]
)
def test_orders_of_friendly_sam_have_one_direction(sigma, official):
  """For an equal average, at sigma = 1 and, translated, below."""
  assert sigma == 1 or official == pytest.approx(0.4737, abs=5e-5)
  recording = Recording('P1_fsam09_nblt')
  gradient = recording.tree(recording['g'][3])
  ema = recording.tree(recording['fsam_m'][2])
  state = perturbations.SubtractEmaState(ema, jnp.ones((), bool))
  epsilons = []
  for order, share in (('paper', sigma), ('official', official)):
    piece = perturbations.subtract_ema(0.9, share, order=order)
    noise, new_state = piece.update(gradient, state)
    scale = perturbations.scale_to_radius(RHO)
    epsilons.append(recording.flat(scale.update(noise, scale.init(None))[0]))
    np.testing.assert_allclose(
      recording.flat(new_state.ema), recording['fsam_m'][3], atol=1e-14
    )
  np.testing.assert_allclose(*epsilons, atol=1e-13)


def perturbed_along(method, gradients):
  """Returns epsilon at each of some clean gradients, from w = 0."""
  zeros = jnp.zeros_like(gradients[0])

  def step(state, gradient):
    point, state = method.update(gradient, state, zeros, grad_fn=lambda p: p)
    return state, point

  return jax.jit(lambda g: jax.lax.scan(step, method.init(zeros), g)[1])(
    gradients
  )


@pytest.mark.parametrize('order', ['paper', 'official'])
def test_gradient_that_never_changes_has_no_noise(order):
  """In the order of the paper, once its average has come up to it."""
  method = optax_sam.friendly_sam(RHO, decay=0.5, order=order)
  gradient = np.array([0.3, -1.7, 0.2])
  epsilons = perturbed_along(method, jnp.asarray(np.tile(gradient, (60, 1))))
  perturbs = 1 if order == 'official' else 20
  np.testing.assert_allclose(
    epsilons[:perturbs],
    np.tile(RHO * gradient / NORM(gradient), (perturbs, 1)),
    rtol=1e-3,
  )
  assert not np.any(epsilons[perturbs if order == 'official' else 55 :])


@pytest.mark.parametrize(
  'method',
  [
    lambda: optax_sam.asam(0.5, eta=0.0),
    optax_sam.friendly_sam,
    optax_sam.gsam,
    lambda: optax_sam.look_sam(0.5, period=2, per_leaf=True),
    lambda: optax_sam.look_layer_sam(0.5, period=2),
    lambda: optax_sam.look_layer_sam(0.5, period=2, rule='layer'),
    lambda: optax_sam.look_layer_sam(0.5, period=2, rule='unit'),
  ],
)
def test_leaf_without_a_gradient(method):
  """Ports that take norms leaf by leaf turn everything to NaN."""
  method = method()
  params = {'a': jnp.array([1.0, 2.0]), 'b': jnp.array([3.0])}
  gradient = {'a': jnp.array([0.5, -1.0]), 'b': jnp.zeros(1)}
  grad_fn = lambda p: {'a': p['a'] ** 3, 'b': jnp.zeros(1)}
  state = method.init(params)
  update = jax.jit(
    lambda state: method.update(gradient, state, params, grad_fn=grad_fn)
  )
  for _ in range(2):
    direction, state = update(state)
    assert not direction['b'].any()
    assert np.isfinite(direction['a']).all()
    assert direction['a'].any()


@pytest.mark.parametrize('bad', [np.nan, np.inf])
@pytest.mark.parametrize(
  'method',
  [
    lambda: optax_sam.k_sam(0.1, ascent=2, descent=2),
    lambda: optax_sam.esam(0.1, beta=1.0, gamma=2, key=0),
    lambda: optax_sam.ordered_sgd(k=2),
  ],
)
def test_example_whose_loss_is_not_finite_is_never_chosen(method, bad):
  method, batch = method(), jnp.array([1.0, bad, -3.0, 2.0])
  losses = lambda w, batch: jnp.square(w - batch)
  w = jnp.float64(0.5)
  direction, _ = method.update(
    w, method.init(w), w, per_example_value_fn=losses, batch=batch
  )
  assert np.isfinite(direction)
  assert direction != 0


def test_ordered_sgd_is_unbiased_for_the_weighted_sum_of_sorted_losses():
  """By all batches of b out of n, against the weights in closed form."""
  n, b, k = 7, 4, 2
  method, w = optax_sam.ordered_sgd(k=k), jnp.float64(0.2)
  data = jnp.sin(jnp.arange(1.0, n + 1) ** 2)
  losses = lambda w, batch: jnp.square(w - batch)
  batches = data[np.array(list(itertools.combinations(range(n), b)))]
  directions = jax.vmap(
    lambda batch: method.update(
      w, method.init(w), w, per_example_value_fn=losses, batch=batch
    )[0]
  )(batches)

  weights = [
    sum(
      math.comb(j - 1, i) * math.comb(n - j, b - i - 1)
      for i in range(min(k, j, b))
    )
    / math.comb(n, b)
    for j in range(1, n + 1)
  ]
  assert sum(weights) == pytest.approx(k)
  order = jnp.argsort(-losses(w, data))
  gradients = 2 * (w - data[order])
  expected = np.dot(weights, gradients) / k
  np.testing.assert_allclose(np.mean(directions), expected, rtol=1e-12)
  assert abs(expected - np.mean(gradients)) > 0.1


@pytest.mark.parametrize(
  'method',
  [
    lambda: optax_sam.look_sam(0.1, period=2),
    lambda: optax_sam.friendly_sam(0.1),
    lambda: optax_sam.sam(0.1, ascent_steps=2),
  ],
)
def test_parameters_are_never_left_perturbed(method):
  """At a learning rate of 0 they stay as they are, bit for bit."""
  recording = Recording('P3_sam_davda54')
  for step in Replay(recording, method(), optax.sgd(0.0)).run():
    np.testing.assert_array_equal(step.params, recording['w'][0])
