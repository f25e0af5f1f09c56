"""Three steps of every method on one small problem, in float64.

The problem is a quartic with a moving quadratic part; the expected numbers
come from independent programs (those of the authors for SAM, ASAM, GSAM, WSAM,
ZSharp by the tensor, CR-SAM, Eigen-SAM and the mask) or, for the rest, from a
transcription of each rule that shares no code with this one. They have eight
decimals.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam import noise
from optax_sam.methods import random_points

pytestmark = pytest.mark.usefixtures('float64')

# Method, its chain's first element, then w[0], w[4], w[11] and norm(w).
EXPECTED = [
  ('base', optax.identity, (0.40986725, -0.28400597, -0.02406190, 0.92816116)),
  ('sam', optax_sam.sam, (0.39837931, -0.26478414, -0.00755688, 0.90250011)),
  (
    'sam p=inf',
    lambda: optax_sam.sam(p=np.inf),
    (0.36909565, -0.22745824, 0.02918378, 0.84681872),
  ),
  (
    'sam ascent_steps=3',
    lambda: optax_sam.sam(ascent_steps=3),
    (0.39830937, -0.26464339, -0.00718991, 0.90246911),
  ),
  ('asam', optax_sam.asam, (0.36364426, -0.18699136, 0.11026726, 0.78697654)),
  (
    'asam scaled',
    lambda: optax_sam.asam(2.0, eta=0.0, scaled=True),
    (0.14175001, 0.17798759, 0.08725294, 0.73210136),
  ),
  (
    'sam mask',
    lambda: optax_sam.sam(0.5, mask=optax_sam.norm_layers_only),
    (0.36094662, -0.22165516, 0.02199929, 0.87762036),
  ),
  (
    'friendly_sam',
    optax_sam.friendly_sam,
    (0.39779827, -0.26501876, -0.01017447, 0.90265972),
  ),
  (
    'friendly_sam official',
    lambda: optax_sam.friendly_sam(order='official'),
    (0.39716683, -0.26803097, -0.01582834, 0.91114855),
  ),
  (
    'friendly_sam sigma=0.5',
    lambda: optax_sam.friendly_sam(sigma=0.5),
    (0.39815876, -0.26484792, -0.00850915, 0.90248141),
  ),
  (
    'look_sam',
    lambda: optax_sam.look_sam(period=2),
    (0.39224498, -0.26309373, -0.01732747, 0.92323306),
  ),
  (
    'look_sam per_leaf',
    lambda: optax_sam.look_sam(period=2, per_leaf=True),
    (0.39498236, -0.28112604, -0.00562512, 0.93522009),
  ),
  (
    'look_layer_sam',
    lambda: optax_sam.look_layer_sam(period=2),
    (0.39161153, -0.26203946, -0.02492001, 0.92464988),
  ),
  (
    'look_layer_sam layer',
    lambda: optax_sam.look_layer_sam(period=2, rule='layer'),
    (0.39010693, -0.25940438, -0.02268373, 0.92064137),
  ),
  (
    'look_layer_sam unit',
    lambda: optax_sam.look_layer_sam(period=2, rule='unit'),
    (0.39068782, -0.25993534, -0.01160405, 0.91613164),
  ),
  ('gsam', optax_sam.gsam, (0.39836672, -0.26483286, -0.00635992, 0.90579709)),
  (
    'fisher_sam',
    optax_sam.fisher_sam,
    (0.39536345, -0.26420145, -0.00591917, 0.89765478),
  ),
  (
    'gradient_norm_penalty',
    optax_sam.gradient_norm_penalty,
    (0.39136535, -0.25318363, 0.00195438, 0.88787700),
  ),
  (
    'gradient_norm_penalty normalize_clean',
    lambda: optax_sam.gradient_norm_penalty(normalize_clean=True),
    (0.43217737, -0.32116042, -0.04356668, 1.00683518),
  ),
  ('wsam', optax_sam.wsam, (0.29744512, -0.11104458, 0.08851943, 0.76174167)),
  (
    'unnormalized_sam',
    lambda: optax_sam.unnormalized_sam(0.05),
    (0.34661448, -0.18471927, 0.05528834, 0.82810515),
  ),
  (
    'ae_look_sam',
    lambda: optax_sam.ae_look_sam(total_steps=3),
    (0.39788664, -0.26643847, -0.00858294, 0.91294739),
  ),
  (
    'momentum_sam',
    lambda: optax_sam.momentum_sam(0.3),
    (0.43531044, -0.34490639, -0.10795895, 1.03094407),
  ),
  (
    'le_sam',
    optax_sam.le_sam,
    (0.39488609, -0.25571142, 0.00205580, 0.88555024),
  ),
  (
    'z_sharp',
    lambda: optax_sam.z_sharp(quantile=0.6),
    (0.40395355, -0.26798365, -0.00658989, 0.90652504),
  ),
  (
    'z_sharp per_tensor',
    lambda: optax_sam.z_sharp(quantile=0.6, radius='per_tensor'),
    (0.39753719, -0.25982659, -0.00710310, 0.89906198),
  ),
  (
    'async_sam',
    optax_sam.async_sam,
    (0.40585046, -0.27387821, -0.00927556, 0.91453495),
  ),
  (
    'cr_sam',
    optax_sam.cr_sam,
    (0.38616959, -0.24467496, 0.00872367, 0.87757093),
  ),
]

CURVATURE = np.linspace(0.5, 3, 12)
START = 0.8 * np.sin(np.arange(1, 13))


def as_tree(flat):
  flat = jnp.asarray(flat)
  return {
    'fc.weight': flat[:6].reshape(2, 3),
    'norm.weight': flat[6:9],
    'fc.bias': flat[9:],
  }


def as_vector(tree):
  names = ('fc.weight', 'norm.weight', 'fc.bias')
  return jnp.concatenate([tree[name].ravel() for name in names])


def loss(params, t):
  w = as_vector(params)
  direction = jnp.cos(t + 0.7 * np.arange(12))
  return (
    jnp.sum(CURVATURE * w**2) / 2
    + 0.05 * jnp.sum(w**4)
    + (jnp.dot(direction, w) - 1) ** 2 / 2
  )


def test_problem_is_the_one_of_the_table():
  value, grads = jax.value_and_grad(loss)(as_tree(START), 0.0)
  np.testing.assert_allclose(value, 3.662828909879973, rtol=1e-14)
  np.testing.assert_allclose(
    as_vector(grads)[:3], [0.925679, 1.009929, 0.197808], atol=1e-6
  )


def base():
  return optax.chain(
    optax.add_decayed_weights(0.01), optax.sgd(0.05, momentum=0.9)
  )


def three_steps(tx):
  """Returns the parameters after three steps, and the state after each."""
  tx = optax.with_extra_args_support(tx)
  params = as_tree(START)
  state, states = tx.init(params), []

  @jax.jit
  def step(params, state, t):
    value_fn = lambda p: loss(p, t)
    grads = jax.grad(value_fn)(params)
    updates, state = tx.update(grads, state, params, value_fn=value_fn)
    return optax.apply_updates(params, updates), state

  for t in range(3):
    params, state = step(params, state, float(t))
    states.append(state)
  return np.asarray(as_vector(params)), states


def assert_is(w, expected):
  found = (w[0], w[4], w[11], np.linalg.norm(w))
  np.testing.assert_allclose(found, expected, rtol=0, atol=6e-9)


@pytest.mark.parametrize(
  ('method', 'expected'),
  [pytest.param(*row[1:], id=row[0]) for row in EXPECTED],
)
def test_three_steps(method, expected):
  w, _ = three_steps(optax.chain(method(), base()))
  assert_is(w, expected)


def test_three_steps_around_a_base():
  tx = optax_sam.wsam_decoupled(base(), learning_rate=0.05)
  w, _ = three_steps(tx)
  assert_is(w, (0.36049717, -0.20930995, 0.01276202, 0.82551560))


def test_three_steps_of_two_descents():
  w, _ = three_steps(optax_sam.lookbehind(base()))
  assert_is(w, (0.22552806, 0.01081065, 0.15878053, 0.62329244))


def test_three_steps_along_a_given_eigenvector():
  method = optax_sam.eigen_sam(key=0)

  def init(params):
    state = method.init(params)
    direction = np.cos(np.arange(12.0))
    kept = state.perturbation._replace(
      count=jnp.int32(1),  # past the first estimate, before the second one
      direction=as_tree(direction / np.linalg.norm(direction)),
    )
    return state._replace(perturbation=kept)

  given = optax.GradientTransformationExtraArgs(init, method.update)
  w, _ = three_steps(optax.chain(given, base()))
  assert_is(w, (0.38722543, -0.24690761, 0.00540694, 0.87660902))


def test_three_steps_at_given_points(monkeypatch):
  def draw(key, count, num_samples, like):
    del key, like
    t, i = count.astype(float), np.arange(12.0)
    assert num_samples == 2
    return [as_tree(jnp.sin(7 * t + i)), as_tree(jnp.cos(5 * t + i))]

  monkeypatch.setattr(random_points, 'draw_directions', draw)
  w, _ = three_steps(optax.chain(optax_sam.frob_sam(key=0), base()))
  assert_is(w, (0.41046758, -0.28306559, -0.02107315, 0.92256140))


def test_three_steps_with_given_noise(monkeypatch):
  def draw(key, count, like):
    del key, like
    t = count.astype(float) - 1  # the step that adds it
    return as_tree(jnp.sin(7 * t + np.arange(12.0)))

  monkeypatch.setattr(noise, 'draw_noise', draw)
  tx = optax.chain(optax.sgd(0.05), optax_sam.anti_pgd(0.02, key=0))
  w, _ = three_steps(tx)
  assert_is(w, (0.56700640, -0.53728704, -0.21176294, 1.45341564))


def test_numbers_of_ae_look_sam_are_of_two_ascents_and_a_reuse():
  method = optax_sam.ae_look_sam(total_steps=3)
  _, states = three_steps(optax.chain(method, base()))
  ascended = [bool(optax_sam.metrics(state)['ascended']) for state in states]
  assert ascended == [True, True, False]
