"""Settings at which one method is another, on a small classifier in float64.

The runs are compared over several steps of momentum SGD with weight decay, so
that what a method keeps between the steps is compared too.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam import descents, perturbations, policies, selections
from tests.conformance.reference import Recording, base, replay

pytestmark = pytest.mark.usefixtures('float64')
RHO = 0.3
NEVER = pytest.mark.filterwarnings('ignore:lambda_.*no step ascends')


def chain(*pieces, **kwargs):
  return optax_sam.sharpness_aware(optax.chain(*pieces), **kwargs)


EQUAL_TO_BASE = {
  'sam': lambda: optax_sam.sam(0.0),
  'sam p=inf': lambda: optax_sam.sam(0.0, p=np.inf),
  'sam steps': lambda: optax_sam.sam(0.0, ascent_steps=3),
  'asam': lambda: optax_sam.asam(0.0),
  'friendly_sam': lambda: optax_sam.friendly_sam(0.0),
  'ss_sam probability=0': lambda: optax_sam.ss_sam(RHO, probability=0.0, key=0),
  'ae_sam lambdas=1e9': lambda: optax_sam.ae_sam(
    RHO, total_steps=12, lambda_1=1e9, lambda_2=1e9
  ),
  'fisher_sam': lambda: optax_sam.fisher_sam(0.0),
  'gsam': lambda: optax_sam.gsam(0.0),
  'wsam': lambda: optax_sam.wsam(0.0),
  'look_layer_sam': lambda: optax_sam.look_layer_sam(0.0),
  'gradient_norm_penalty alpha=0': lambda: optax_sam.gradient_norm_penalty(
    RHO, alpha=0.0
  ),
  'wsam gamma=0': lambda: optax_sam.wsam(RHO, gamma=0.0),
  'sparse_sam_fisher sparsity=1': lambda: optax_sam.sparse_sam_fisher(
    RHO, sparsity=1, refresh_every=2
  ),
  'sparse_sam_dynamic sparsity=1': lambda: optax_sam.sparse_sam_dynamic(
    RHO, sparsity=1.0, refresh_every=2, total_steps=12, key=0
  ),
  'sam no leaf allowed': lambda: optax_sam.sam(RHO, mask=False),
  'sam after the end': lambda: chain(
    perturbations.scale_to_radius(RHO), policy=policies.after(100)
  ),
}

EQUAL_TO_SAM = {
  'asam scaled=False': lambda: optax_sam.asam(RHO, scaled=False),
  'friendly_sam sigma=0': lambda: optax_sam.friendly_sam(RHO, sigma=0.0),
  'look_sam period=1': lambda: optax_sam.look_sam(RHO, period=1),
  'ss_sam probability=1': lambda: optax_sam.ss_sam(RHO, probability=1, key=0),
  'ae_sam lambdas=-1e9': lambda: optax_sam.ae_sam(
    RHO, total_steps=12, lambda_1=-1e9, lambda_2=-1e9
  ),
  'ae_look_sam lambdas=-1e9': lambda: optax_sam.ae_look_sam(
    RHO, total_steps=12, lambda_1=-1e9, lambda_2=-1e9
  ),
  'k_sam all': lambda: optax_sam.k_sam(RHO, ascent=1.0, descent=1.0),
  'subset_sam all': lambda: optax_sam.subset_sam(RHO, fraction=1.0),
  'subset_sam all, drawn': lambda: optax_sam.subset_sam(
    RHO, fraction=1.0, key=3
  ),
  'gsam alpha=0': lambda: optax_sam.gsam(RHO, alpha=0.0),
  'gradient_norm_penalty alpha=1': lambda: optax_sam.gradient_norm_penalty(
    RHO, alpha=1.0
  ),
  'wsam gamma=0.5': lambda: optax_sam.wsam(RHO, gamma=0.5),
  'fisher_sam eta=0': lambda: optax_sam.fisher_sam(RHO, eta=0.0),
  'sparse_sam_fisher sparsity=0': lambda: optax_sam.sparse_sam_fisher(
    RHO, sparsity=0.0, refresh_every=2
  ),
  'sparse_sam_dynamic sparsity=0': lambda: optax_sam.sparse_sam_dynamic(
    RHO, sparsity=0.0, refresh_every=2, total_steps=12, key=0
  ),
  'esam all': lambda: optax_sam.esam(RHO, beta=1.0, gamma=1.0, key=0),
  'm_sam one part': lambda: optax_sam.m_sam(RHO, micro_batch_size=16),
  'mask all True': lambda: optax_sam.sam(RHO, mask=True),
  'after the start': lambda: chain(
    perturbations.scale_to_radius(RHO), policy=policies.after(0)
  ),
  'constant schedule': lambda: optax_sam.sam(optax.constant_schedule(RHO)),
}


def trajectory(method):
  recording = Recording('P1_sam_davda54')
  tx = optax.with_extra_args_support(optax.chain(method, base()))
  return [recording.flat(p) for p, _ in replay(recording, tx)]


EQUAL_PAIRS = {
  'wsam is a gradient norm penalty': (
    lambda: optax_sam.wsam(RHO, gamma=0.4),
    lambda: optax_sam.gradient_norm_penalty(RHO, alpha=0.4 / 0.6),
  ),
  'ordered_sgd is k_sam without radius': (
    lambda: optax_sam.ordered_sgd(k=8),
    lambda: optax_sam.k_sam(0.0, ascent=4, descent=8),
  ),
}


@functools.cache
def sam_trajectory():
  return trajectory(optax_sam.sam(RHO))


@functools.cache
def base_trajectory():
  return trajectory(optax.identity())


@NEVER
@pytest.mark.parametrize('name', EQUAL_TO_BASE)
def test_equals_the_base_optimizer(name):
  found = trajectory(EQUAL_TO_BASE[name]())
  np.testing.assert_array_equal(found, base_trajectory())


@pytest.mark.parametrize('name', EQUAL_TO_SAM)
def test_equals_sam(name):
  found = trajectory(EQUAL_TO_SAM[name]())
  np.testing.assert_allclose(found, sam_trajectory(), rtol=0, atol=1e-12)


@pytest.mark.parametrize('name', EQUAL_PAIRS)
def test_equals_another_method(name):
  left, right = EQUAL_PAIRS[name]
  np.testing.assert_allclose(
    trajectory(left()), trajectory(right()), rtol=0, atol=1e-12
  )


def test_decoupled_wsam_is_wsam_under_plain_sgd():
  recording = Recording('P1_sam_davda54')
  sgd = optax.sgd(0.05)
  coupled = optax.chain(optax_sam.wsam(RHO, gamma=0.8), sgd)
  decoupled = optax_sam.wsam_decoupled(
    sgd, rho=RHO, gamma=0.8, learning_rate=optax.constant_schedule(0.05)
  )
  steps = list(replay(recording, decoupled))
  for (found, _), (expected, _) in zip(
    steps, replay(recording, coupled), strict=True
  ):
    np.testing.assert_allclose(
      recording.flat(found), recording.flat(expected), rtol=0, atol=1e-13
    )
  state = steps[-1][1]
  assert optax_sam.metrics(state)['second_gradients'] == recording.steps


def test_decoupled_wsam_without_weight_is_its_base():
  recording = Recording('P1_sam_davda54')
  tx = optax_sam.wsam_decoupled(base(), rho=RHO, gamma=0.0, learning_rate=0.1)
  found = [recording.flat(params) for params, _ in replay(recording, tx)]
  np.testing.assert_allclose(found, base_trajectory(), rtol=0, atol=1e-14)


def test_ordered_sgd_with_all_examples_is_the_base_optimizer():
  found = trajectory(optax_sam.ordered_sgd(k=1.0))
  np.testing.assert_allclose(found, base_trajectory(), rtol=0, atol=1e-13)


def test_sam_is_not_the_base_optimizer():
  difference = np.abs(np.subtract(sam_trajectory(), base_trajectory()))
  assert difference.max() > 1e-3


def test_k_sam_without_radius_is_ordered_sgd():
  """Examples are still chosen at rho = 0."""
  recording = Recording('P1_ksam_numpy')
  found = trajectory(optax_sam.k_sam(0.0, ascent=4, descent=8))
  params = recording.tree(recording['w'][0])
  optimizer = base()
  state = optimizer.init(params)
  for t in range(recording.steps):
    batch = recording.batch(t)
    worst = jnp.argsort(-recording.losses(params, batch))[:8]
    rows = jax.tree.map(lambda x, worst=worst: x[worst], batch)
    grads = jax.grad(lambda p, rows=rows: recording.losses(p, rows).mean())(
      params
    )
    updates, state = optimizer.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(
      found[t], recording.flat(params), rtol=0, atol=1e-12
    )


def test_both_orders_of_friendly_sam_agree_for_an_equal_average():
  """At sigma = 1 they have one direction, whatever the decay."""
  recording = Recording('P1_fsam06_nblt')
  gradient = recording.tree(recording['g'][3])
  ema = recording.tree(recording['fsam_m'][2])
  state = perturbations.SubtractEmaState(ema, jnp.ones((), bool))
  epsilons = []
  for order in ('paper', 'official'):
    piece = perturbations.subtract_ema(0.6, order=order)
    noise, new_state = piece.update(gradient, state)
    scale = perturbations.scale_to_radius(RHO)
    epsilons.append(recording.flat(scale.update(noise, scale.init(None))[0]))
    np.testing.assert_allclose(
      recording.flat(new_state.ema), recording['fsam_m'][3], atol=1e-14
    )
  np.testing.assert_allclose(*epsilons, atol=1e-13)


GLOBAL_RULES = {
  'sam': lambda: optax_sam.sam(RHO),
  'friendly_sam': lambda: optax_sam.friendly_sam(RHO),
  'look_sam': lambda: optax_sam.look_sam(RHO, period=2),
  'ae_look_sam': lambda: optax_sam.ae_look_sam(RHO, total_steps=12),
  'asam scaled': lambda: optax_sam.asam(RHO, scaled=True),
}


@pytest.mark.parametrize('name', GLOBAL_RULES)
def test_splitting_leaves_changes_nothing(name):
  recording = Recording('P3_sam_davda54')
  whole = trajectory_of_quartic(GLOBAL_RULES[name](), split=False)
  parts = trajectory_of_quartic(GLOBAL_RULES[name](), split=True)
  assert recording.steps == len(whole)
  np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-12)


def trajectory_of_quartic(method, *, split):
  recording = Recording('P3_sam_davda54')
  kernel = recording.tree(recording['w'][0])['layer']['kernel']
  params = {'kernel': kernel}
  if split:
    params = {'first': kernel[:3], 'rest': kernel[3:]}

  def loss(params):
    kernel = jnp.concatenate(list(params.values()))
    tree = {'layer': {'kernel': kernel}}
    return recording.losses(tree, recording.batch(0))[0]

  tx = optax.chain(method, base())

  @jax.jit
  def step(params, state):
    updates, state = tx.update(
      jax.grad(loss)(params), state, params, value_fn=loss
    )
    return optax.apply_updates(params, updates), state

  state, found = tx.init(params), []
  for _ in range(recording.steps):
    params, state = step(params, state)
    found.append(np.concatenate([np.ravel(x) for x in params.values()]))
  return found


def test_reused_part_is_orthogonal_and_as_long_as_asked():
  recording = Recording('P1_sam_davda54')
  with jax.enable_x64(False):
    clean = recording.tree(np.float32(recording['g'][0]))
    perturbed = recording.tree(np.float32(recording['g_final'][0]))
    descent = descents.reuse_orthogonal(0.3)
    _, state = descent.on_ascent(clean, perturbed, descent.init(clean))
    part = recording.flat(state.direction).astype(np.float64)
    g = recording.flat(clean).astype(np.float64)
    cosine = part @ g / np.linalg.norm(part) / np.linalg.norm(g)
    assert abs(cosine) < 1e-5
    direction, _ = descent.on_skip(clean, state)
    added = recording.flat(direction) - g
  np.testing.assert_allclose(
    np.linalg.norm(added), 0.3 * np.linalg.norm(g), rtol=1e-5
  )
  np.testing.assert_allclose(
    float(state.ratio), np.linalg.norm(part) / np.linalg.norm(g), rtol=1e-5
  )


def test_any_policy_perturbation_descent_and_selection_compose():
  """A sample of combinations that nobody published; all must just run."""
  recording = Recording('P1_sam_davda54')
  noise = [
    perturbations.subtract_ema(0.9),
    perturbations.scale_to_adaptive_radius(0.1),
  ]
  for policy in (policies.every(2), policies.bernoulli(0.5, 0)):
    for selection in (selections.top_k(4, 8), selections.random_subset(0.5)):
      method = chain(
        *noise,
        policy=policy,
        selection=selection,
        descent=descents.reuse_orthogonal(0.2),
      )
      steps = list(replay(recording, optax.chain(method, base())))
      for params, _ in steps:
        assert np.isfinite(recording.flat(params)).all()
      taken = optax_sam.metrics(steps[-1][1])['second_gradients']
      assert 0 < taken < recording.steps
