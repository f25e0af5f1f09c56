"""All perturbations, policies, combination rules and batch selections combine.

Pairwise coverage: the combinations include every two members of any two
components, because most faults need only two. Each combination is traced, and a
step must return a state of the same types.
"""

import inspect
import itertools

import jax
import optax
import pytest

import optax_sam
from optax_sam import descents, perturbations, policies, selections
from tests.contracts import comparisons, training

POLICIES = {
  'always': policies.always,
  'every': lambda: policies.every(2),
  'bernoulli': lambda: policies.bernoulli(0.5, 3),
  'on_sharp_gradients': lambda: policies.on_sharp_gradients(20),
  'after': lambda: policies.after(1, policies.on_sharp_gradients(20)),
  'between': lambda: policies.between(1, 3),
}
_BY_RADIUS = perturbations.scale_to_radius
PERTURBATIONS = {
  'scale_to_radius': lambda: _BY_RADIUS(optax.constant_schedule(0.1)),
  'scale_by_radius': lambda: perturbations.scale_by_radius(0.1, clip=True),
  'scale_to_adaptive_radius': lambda: perturbations.scale_to_adaptive_radius(
    0.1
  ),
  'scale_to_fisher_radius': lambda: perturbations.scale_to_fisher_radius(0.1),
  'scale_by_trust_ratio_radius': (
    lambda: perturbations.scale_by_trust_ratio_radius(0.1)
  ),
  'ascend_repeatedly': lambda: perturbations.ascend_repeatedly(0.1, 2),
  'subtract_ema': lambda: optax.chain(
    perturbations.subtract_ema(0.5), _BY_RADIUS(0.1)
  ),
  'average_gradient': lambda: optax.chain(
    perturbations.average_gradient(0.5), _BY_RADIUS(0.1)
  ),
  'keep_top_fisher': lambda: optax.chain(
    _BY_RADIUS(0.1),
    perturbations.keep_top_fisher(num_samples=3, refresh_every=2),
  ),
  'keep_dynamic': lambda: optax.chain(
    _BY_RADIUS(0.1),
    perturbations.keep_dynamic(refresh_every=2, total_steps=20, key=1),
  ),
  'keep_n_of_m': lambda: optax.chain(
    perturbations.keep_n_of_m(1, 3), _BY_RADIUS(0.1)
  ),
  'keep_random_tensors': lambda: optax.chain(
    perturbations.keep_random_tensors(0.5, 1), _BY_RADIUS(0.1)
  ),
  'scale_to_loss_rise': lambda: perturbations.scale_to_loss_rise(0.1),
  'keep_outliers': lambda: optax.chain(
    perturbations.keep_outliers(0.5), _BY_RADIUS(0.1)
  ),
  'scale_outliers_to_radius': lambda: perturbations.scale_outliers_to_radius(
    0.1, 0.5
  ),
  'scale_toward_eigenvector': lambda: perturbations.scale_toward_eigenvector(
    0.1, refresh_every=2, power_steps=2, key=1
  ),
  'delay': lambda: optax.chain(perturbations.delay(), _BY_RADIUS(0.1)),
}
DESCENTS = {
  'perturbed_gradient': descents.perturbed_gradient,
  'mix': lambda: descents.mix(0.5, normalize_clean=True),
  'surrogate_gap': descents.surrogate_gap,
  'reuse_orthogonal': descents.reuse_orthogonal,
  'regularize_curvature': descents.regularize_curvature,
  'add_change': descents.add_change,
  'clean_length': descents.clean_length,
}
SELECTIONS = {
  'all_examples': selections.all_examples,
  'random_subset': lambda: selections.random_subset(0.5, 1),
  'top_k': lambda: selections.top_k(3, 0.5),
  'sharpest': lambda: selections.sharpest(0.5),
  'micro_batches': lambda: selections.micro_batches(3),
  'weighted': lambda: selections.weighted(lambda batch: batch['weight'] / 2),
}
_CHOICES = (PERTURBATIONS, POLICIES, DESCENTS, SELECTIONS)


def _pairs(combination):
  return set(itertools.combinations(enumerate(combination), 2))


def _covering(product):
  """Returns combinations that have all pairs of members, greedily."""
  missing, chosen = set().union(*map(_pairs, product)), []
  while missing:
    combination = max(product, key=lambda row: len(_pairs(row) & missing))
    chosen.append(combination)
    missing -= _pairs(combination)
  return chosen


_TRACED = _covering(list(itertools.product(*_CHOICES)))


def _method(combination):
  perturbation, policy, descent, selection = (
    members[name]() for members, name in zip(_CHOICES, combination, strict=True)
  )
  return optax_sam.sharpness_aware(
    perturbation, policy=policy, descent=descent, selection=selection
  )


def test_all_members_are_covered():
  """Members are functions that build a transformation or a component."""
  words = (
    optax.GradientTransformation,
    optax.GradientTransformationExtraArgs,
    policies.Policy,
    descents.Descent,
    selections.Selection,
  )
  modules = (perturbations, policies, descents, selections)
  for members, module in zip(_CHOICES, modules, strict=True):
    public = {
      name
      for name, value in vars(module).items()
      if inspect.isfunction(value) and not name.startswith('_')
      if value.__annotations__.get('return') in words
    }
    assert set(members) == public


@pytest.mark.parametrize('perturbation', PERTURBATIONS)
def test_types_are_stable(perturbation):
  params, given = training.params(), training.functions(training.batch())
  for combination in _TRACED:
    if combination[0] != perturbation:
      continue
    tx = _method(combination)
    state = jax.eval_shape(tx.init, params)
    updates, after = jax.eval_shape(
      lambda s, tx=tx: tx.update(params, s, params, **given), state
    )
    types = comparisons.types((params, state))
    assert comparisons.types((updates, after)) == types, combination
