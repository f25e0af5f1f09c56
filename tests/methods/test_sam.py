"""SAM, and properties that all methods share."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam import perturbations, policies
from tests.conformance.reference import Recording
from tests.methods import checks
from tests.oracles import problems, sam, step

RHO = checks.RHO

test_follows_the_rule = checks.follows(sam.CASES)
test_golden_values = checks.golden(
  optax_sam.sam,
  sam.sam,
  ({}, (0.39837931, -0.26478414, -0.00755688, 0.90250011)),
  ({'p': np.inf}, (0.36909565, -0.22745824, 0.02918378, 0.84681872)),
  ({'ascent_steps': 3}, (0.39830937, -0.26464339, -0.00718991, 0.90246911)),
)


@pytest.mark.usefixtures('float64')
def test_golden_values_of_the_base_optimizer():
  expected = (0.40986725, -0.28400597, -0.02406190, 0.92816116)
  quartic = checks.QUARTIC
  checks.assert_golden(checks.run(quartic.base(), quartic).path, expected)


test_is_base = checks.is_base(optax_sam.sam, {'mask': False})
test_is_sam = checks.is_sam(
  optax_sam.sam,
  {'mask': True},
  {'rho': optax.constant_schedule(RHO)},
)


def late(start):
  return optax_sam.sharpness_aware(
    perturbations.scale_to_radius(RHO), policy=policies.after(start)
  )


test_before_the_start_is_base = checks.is_base(late, {'start': 100})
test_after_the_start_is_sam = checks.is_sam(late, {'start': 0})


@pytest.mark.usefixtures('float64')
def test_the_problems_equal_those_of_the_golden_values():
  batch = problems.QUARTIC.batch(0)
  value = problems.QUARTIC.losses(problems.QUARTIC.start, batch)
  np.testing.assert_allclose(value, 3.662828909879973, rtol=1e-14)
  for problem in (problems.QUARTIC, problems.NETWORK):
    batch, params = problem.batch(0), problem.params()
    loss = lambda p, x=problem, b=batch: jnp.mean(x.jax_losses(p, b))
    np.testing.assert_allclose(
      problem.flat(jax.grad(loss)(params)),
      problem.gradient(problem.start, batch),
      rtol=1e-10,
    )
  gradient = problems.QUARTIC.gradient(
    problems.QUARTIC.start, problems.QUARTIC.batch(0)
  )
  np.testing.assert_allclose(
    gradient[:3], [0.925679, 1.009929, 0.197808], atol=1e-6
  )


def test_sides_of_the_identities_differ():
  """If they were equal, the identities would hold for any method."""
  sam_path, base_path = (checks.expected_path(rho) for rho in (RHO, None))
  assert np.abs(sam_path[-1] - base_path[-1]).max() > 1e-3


@pytest.mark.usefixtures('float64')
def test_golden_values_with_a_mask():
  problem = problems.QUARTIC
  kept = problem.flat(
    {
      name: np.full(x.shape, 'norm' in name)
      for name, x in problem.params().items()
    }
  )
  expected = (0.36094662, -0.22165516, 0.02199929, 0.87762036)
  method = optax_sam.sam(0.5, mask=optax_sam.norm_layers_only)
  found = checks.run(optax.chain(method, problem.base()), problem)
  checks.assert_golden(found.path, expected)
  rule = step.train(lambda x: sam.sam(x, 0.5), problem, kept=kept)
  checks.assert_golden(rule.path, expected)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize(
  ('run', 'length'),
  [
    ('P3t_sam_mipeng', 0.003),  # 1e-7 added to the norm
    ('P3t_sam_samsung', 0.05),  # 1e-16
    ('P3t_sam_davda54', 0.049992),  # 1e-12, as here in float64
  ],
)
def test_stabilizer_is_1e_12(run, length):
  """For a gradient of 6.5e-9, another stabilizer gives another length."""
  theirs = Recording(run)
  first = np.linalg.norm(theirs['eps'][0])
  np.testing.assert_allclose(first, length, rtol=0.02)
  point = theirs.tree(theirs['w'][0])
  gradient = theirs.tree(theirs['g'][0])
  found = checks.perturbed(optax_sam.sam(0.05), gradient, point)
  epsilon = theirs.flat(found) - theirs['w'][0]
  np.testing.assert_allclose(np.linalg.norm(epsilon), 0.049992, atol=1e-6)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize(
  ('p', 'expected'), [(2, [0.3, 0.4]), (np.inf, [0.5, 0.5])]
)
def test_several_ascent_steps_stay_in_the_ball(p, expected):
  """With `optax.contrib.sam` five nearly parallel steps leave the ball."""
  params, gradient = jnp.zeros(2), jnp.array([3.0, 4.0])
  method = optax_sam.sam(0.5, p=p, ascent_steps=5)
  grad_fn = lambda p: p + gradient
  direction, _ = method.update(
    gradient, method.init(params), params, grad_fn=grad_fn
  )
  np.testing.assert_allclose(direction - gradient, expected, rtol=1e-11)


def test_several_ascent_steps_are_rounded_once():
  """The steps are added in float32, also in half precision."""
  gradients = [jnp.sin(k + jnp.arange(1.0, 65.0)) for k in range(4)]
  gradients = [gradient.astype(jnp.bfloat16) for gradient in gradients]

  def epsilon(dtype):
    clean, *rest = [gradient.astype(dtype) for gradient in gradients]
    rest, zeros = iter(rest), jnp.zeros(64, dtype)
    method = optax_sam.sam(0.3, ascent_steps=4)
    grad_fn = lambda point: next(rest, point)
    return checks.perturbed(method, clean, zeros, grad_fn=grad_fn)

  rounded = epsilon(jnp.bfloat16)
  assert rounded.dtype == jnp.bfloat16
  np.testing.assert_array_equal(
    rounded, epsilon(jnp.float32).astype(jnp.bfloat16)
  )


@pytest.mark.usefixtures('float64')
def test_epsilon_is_a_constant_in_derivatives():
  """The authors report worse results with its derivative."""
  loss = lambda w: jnp.sum(w**4)
  w = jnp.array([1.0, 2.0])
  gradient = jax.grad(loss)(w)
  epsilon = 0.5 * gradient / jnp.linalg.norm(gradient)
  found = checks.perturbed(optax_sam.sam(0.5), gradient, w, value_fn=loss)
  np.testing.assert_allclose(found, 4 * (w + epsilon) ** 3, rtol=1e-10)


def test_small_gradients_are_also_scaled():
  zero = jnp.zeros(())
  epsilon = checks.perturbed(optax_sam.sam(0.05), zero + 1e-8, zero)
  np.testing.assert_allclose(epsilon, 0.05, rtol=1.1e-4)
