"""Where published programs are not followed: our value, and why.

`test_differences_of_sparse_sam.py` has the rest; `test_pieces.py` has the rules
that are the same in programs whose whole runs differ from ours.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam import selections
from tests.conformance.reference import Recording, Replay

pytestmark = pytest.mark.usefixtures('float64')


def perturbed(method, gradient, params, **given):
  """Returns w + epsilon, by a gradient that is the point it is taken at."""
  given = given or {'grad_fn': lambda p: p}
  return method.update(gradient, method.init(params), params, **given)[0]


# SAM.


@pytest.mark.parametrize(
  ('name', 'method'),
  [
    (
      'P3z_looksam_samhub',
      lambda: optax_sam.look_sam(0.1, period=5, alpha=0.7),
    ),
    ('P3z_gsam_samhub', optax_sam.gsam),
  ],
)
def test_zero_gradient_perturbs_nothing(name, method):
  """Where a public port divides 0 by 0, ours takes the base step."""
  theirs = Recording(name)
  assert np.isnan(theirs['g_final']).any() or np.isnan(theirs['w']).any()
  steps = list(Replay(theirs, method(), watched=True).run())
  assert not steps[0].epsilon.any()
  assert not steps[0].direction.any()
  assert np.isfinite([step.params for step in steps]).all()


@pytest.mark.parametrize(
  ('run', 'length'),
  [
    ('P3t_sam_mipeng', 0.003),  # 1e-7 added to the norm
    ('P3t_sam_samsung', 0.05),  # 1e-16
    ('P3t_sam_davda54', 0.049992),  # 1e-12, as here
  ],
)
def test_stabilizer_is_1e_12(run, length):
  """At a gradient of 6.5e-9 other stabilizers give other lengths."""
  theirs = Recording(run)
  first = np.linalg.norm(theirs['eps'][0])
  np.testing.assert_allclose(first, length, rtol=0.02)
  point = theirs.tree(theirs['w'][0])
  gradient = theirs.tree(theirs['g'][0])
  found = perturbed(optax_sam.sam(0.05), gradient, point)
  epsilon = theirs.flat(found) - theirs['w'][0]
  np.testing.assert_allclose(np.linalg.norm(epsilon), 0.049992, atol=1e-6)


@pytest.mark.parametrize(
  ('p', 'expected'), [(2, [0.3, 0.4]), (np.inf, [0.5, 0.5])]
)
def test_several_ascent_steps_stay_in_the_ball(p, expected):
  """`optax.contrib.sam` sums them up: five nearly parallel ones are longer."""
  params, gradient = jnp.zeros(2), jnp.array([3.0, 4.0])
  method = optax_sam.sam(0.5, p=p, ascent_steps=5)
  grad_fn = lambda p: p + gradient
  direction, _ = method.update(
    gradient, method.init(params), params, grad_fn=grad_fn
  )
  np.testing.assert_allclose(direction - gradient, expected, rtol=1e-11)


def test_epsilon_is_held_constant():
  """Differentiating through it gave the authors worse results."""
  loss = lambda w: jnp.sum(w**4)
  w = jnp.array([1.0, 2.0])
  gradient = jax.grad(loss)(w)
  epsilon = 0.5 * gradient / jnp.linalg.norm(gradient)
  method = optax_sam.sam(0.5)
  found, _ = method.update(gradient, method.init(w), w, value_fn=loss)
  np.testing.assert_allclose(found, 4 * (w + epsilon) ** 3, rtol=1e-10)


# ASAM.

WEIGHTS = {'w': np.array([3.0, -4.0]), 'bias': np.array([0.0, 2.0])}
GRADIENT = {'w': np.array([1.0, 1.0]), 'bias': np.array([1.0, -1.0])}


def adaptive(scales, radius=0.5):
  """Returns w + epsilon by the formula, for given T."""
  total = np.sqrt(sum(np.sum((scales[k] * GRADIENT[k]) ** 2) for k in scales))
  return {
    k: WEIGHTS[k] + radius * scales[k] ** 2 * GRADIENT[k] / total
    for k in scales
  }


@pytest.mark.parametrize(
  ('arguments', 'scales'),
  [
    # The authors, by the name "weight": `w` would be plain SAM to them.
    ({}, {'w': [3.01, 4.01], 'bias': [1.0, 1.0]}),
    # Their example script.
    ({'eta': 0.0}, {'w': [3.0, 4.0], 'bias': [1.0, 1.0]}),
    # davda54/sam, where a bias of zero isn't perturbed.
    ({'eta': 0.0, 'scaled': True}, {'w': [3.0, 4.0], 'bias': [0.0, 2.0]}),
    # dbahri/universal_sam.
    ({'scaled': True}, {'w': [3.01, 4.01], 'bias': [0.01, 2.01]}),
    # What their program makes of a parameter without "weight" in its name.
    ({'scaled': False}, {'w': [1.0, 1.0], 'bias': [1.0, 1.0]}),
  ],
)
def test_families_of_asam(arguments, scales):
  scales = {name: np.array(scale) for name, scale in scales.items()}
  given = jax.tree.map(jnp.asarray, (GRADIENT, WEIGHTS))
  found = perturbed(optax_sam.asam(0.5, **arguments), *given)
  for name, point in adaptive(scales).items():
    np.testing.assert_allclose(found[name], point, rtol=1e-11)


# F-SAM, LookSAM.


def test_friendly_sam_averages_the_gradient_as_it_is():
  """A popular port averages what is left after the subtraction."""
  recording = Recording('P1_fsam09_nblt')
  method = optax_sam.friendly_sam(0.05, order='official')
  steps = list(Replay(recording, method).run(fed=True))
  ported, ours = np.zeros(83), np.zeros(83)
  for t in range(recording.steps):
    g, first = recording['g'][t], t == 0
    ported = g if first else 0.9 * ported + 0.1 * (g - ported)
    ours = g if first else 0.9 * ours + 0.1 * g
  found = recording.flat(steps[-1].state.perturbation[0].ema)
  np.testing.assert_allclose(found, ours, rtol=0, atol=1e-14)
  assert np.abs(ported - ours).max() > 1e-3


def test_look_sam_takes_norms_over_all_leaves_by_default():
  """Of the reused directions of a port that takes them leaf by leaf."""
  port, ours = Recording('P1_looksam_kozistr'), Recording('P1_looksam_numpy')
  np.testing.assert_array_equal(port['w'][0], ours['w'][0])
  reused = np.abs(port['g_final'][1:5] - ours['g_final'][1:5])
  assert reused.max() > 0.1


# ESAM.


def test_esam_keeps_the_example_that_a_strict_comparison_loses():
  """gamma=0.5 of 16 is 8 examples; the program keeps the 7 above the 8th."""
  recording = Recording('P1_esamb1_dydjw9')
  for t in range(recording.steps):
    before = recording['esam_losses_before'][t]
    rise = jnp.asarray(recording['esam_losses_after'][t] - before)
    ours = np.asarray(selections.largest(rise, 8))
    theirs = set(np.flatnonzero(recording['esam_selected'][t]).tolist())
    assert len(theirs) == 7
    assert theirs == set(ours[:7].tolist())


SQUARES = {
  # Every example has the loss whose gradient is the point it is taken at.
  'per_example_value_fn': lambda p, b: jnp.full(
    len(b), sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(p)) / 2
  ),
  'batch': np.zeros(4),
}


def test_esam_descends_where_all_losses_rise_alike():
  """No example is strictly above the others, and the program keeps none."""
  method = optax_sam.esam(0.05, beta=1.0, gamma=0.5, key=0)
  gradient, params = jnp.array([3.0, 4.0]), jnp.ones(2)
  found = perturbed(method, gradient, params, **SQUARES)
  np.testing.assert_allclose(found, [1.03, 1.04], rtol=1e-10)


def test_esam_draws_leaves_from_the_first_step_on():
  """The program keeps all at first, and fails where it keeps none."""
  params = {'a': jnp.zeros(1), 'b': jnp.zeros(1), 'c': jnp.zeros(1)}
  gradient = {'a': jnp.ones(1), 'b': jnp.ones(1), 'c': jnp.ones(1)}

  def first_step(key):
    method = optax_sam.esam(0.3, beta=0.5, gamma=1.0, key=key)
    return perturbed(method, gradient, params, **SQUARES)

  points = jax.jit(jax.vmap(first_step))(
    jax.random.split(jax.random.key(0), 20)
  )
  epsilons = np.concatenate(jax.tree.leaves(points), axis=1)
  kept = np.count_nonzero(epsilons, axis=1)
  assert set(kept) == {0, 1, 2, 3}
  np.testing.assert_allclose(
    np.linalg.norm(epsilons, axis=1),
    np.where(kept > 0, 0.3 / 0.5, 0.0),
    rtol=1e-10,
  )


# Gradient-norm penalty, Fisher SAM, Ordered SGD.


@pytest.mark.parametrize(
  ('normalize_clean', 'expected'),
  # The README of the program; its released configuration.
  [(False, [0.2 * 3, 0.2 * 4 + 0.8 * 2]), (True, [0.2 * 0.6, 0.16 + 1.6])],
)
def test_clean_gradient_of_the_penalty(normalize_clean, expected):
  method = optax_sam.gradient_norm_penalty(normalize_clean=normalize_clean)
  found = perturbed(
    method,
    jnp.array([3.0, 4.0]),
    jnp.zeros(2),
    grad_fn=lambda _: jnp.array([0.0, 2.0]),
  )
  np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_fisher_sam_has_its_length_in_the_metric():
  """Another port rescales it to length rho."""
  gradient = jnp.array([1.0, 3.0])
  epsilon = perturbed(optax_sam.fisher_sam(0.1), gradient, jnp.zeros(2))
  metric = 1 + np.square(gradient)
  np.testing.assert_allclose(np.sum(metric * epsilon**2), 0.01, rtol=1e-10)
  assert np.linalg.norm(epsilon) < 0.06


@pytest.mark.parametrize('interact', [False, True])
def test_ordered_sgd_gathers_before_the_forward_pass(interact):
  """The program ranks in a full one: the same unless examples interact."""

  def losses(w, batch):
    shifted = batch - float(interact) * jnp.mean(batch)
    return jnp.square(w - shifted)

  w, batch = jnp.float64(0.0), jnp.array([1.0, -3.0, 2.0, -6.0])
  within = jax.grad(lambda w: jnp.mean(jax.lax.top_k(losses(w, batch), 2)[0]))
  found = perturbed(
    optax_sam.ordered_sgd(k=2), w, w, per_example_value_fn=losses, batch=batch
  )
  assert (float(found) == float(within(w))) is not interact


def test_radius_of_the_coupling_never_falls_below_its_minimum():
  """A warm-up below lr_min gave others a negative radius."""
  radius = optax_sam.rho_like_learning_rate(
    optax.linear_schedule(0.0, 1.0, 10),
    rho_max=0.6,
    rho_min=0.1,
    lr_max=1.0,
    lr_min=0.5,
  )
  np.testing.assert_allclose(
    [radius(t) for t in (0, 5, 10)], [0.1, 0.1, 0.6], rtol=1e-6
  )
