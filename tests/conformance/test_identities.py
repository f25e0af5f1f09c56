"""Settings at which one method is another, or the base optimizer.

Both sides minimize a quartic of two leaves or, where examples are chosen, train
a small classifier: twelve steps of momentum SGD with weight decay in float64,
so that what a method keeps between the steps is compared too. What holds of a
single step is in `test_properties.py`, what devices do in `tests/distributed`.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam import perturbations, policies
from tests.conformance.reference import Recording, Replay, base

pytestmark = [
  pytest.mark.usefixtures('float64'),
  pytest.mark.filterwarnings('ignore:lambda_.*no step ascends'),
]
RHO = 0.3
BIT = 0.0
ROUNDING = 1e-12


class Split(Recording):
  """A recorded problem whose one leaf is two."""

  def tree(self, flat):
    kernel = super().tree(flat)['layer']['kernel']
    return {'layer': {'first': kernel[:3], 'second': kernel[3:]}}

  def flat(self, tree):
    return np.asarray(self._kernel(tree)).ravel()

  def losses(self, params, batch):
    return super().losses({'layer': {'kernel': self._kernel(params)}}, batch)

  def _kernel(self, tree):
    return jnp.concatenate([tree['layer']['first'], tree['layer']['second']])


class Side(NamedTuple):
  """One side of an equation."""

  method: Callable[[], Any]
  optimizer: Callable[[], Any] = base
  problem: Callable[[], Recording] = lambda: Split('P3_sam_davda54')


BASE = Side(optax.identity)
SAM = Side(lambda: optax_sam.sam(RHO))


def with_radius(method, rho=RHO, /, **arguments):
  return Side(functools.partial(method, rho, **arguments))


def decoupled(optimizer, **arguments):
  return Side(
    lambda: optax_sam.wsam_decoupled(optimizer, rho=RHO, **arguments),
    optax.identity,
  )


def scheduled(policy):
  scale = perturbations.scale_to_radius(RHO)
  return Side(lambda: optax_sam.sharpness_aware(scale, policy=policy))


def of_one_leaf(side):
  return side._replace(problem=lambda: Recording('P3_sam_davda54'))


def of_examples(side):
  return side._replace(problem=lambda: Recording('P1_sam_davda54'))


BASE_OF_EXAMPLES = of_examples(BASE)
SAM_OF_EXAMPLES = of_examples(SAM)


# Arguments without a default, or with one that doesn't fit 12 steps.
FISHER = functools.partial(optax_sam.sparse_sam_fisher, refresh_every=2)
DYNAMIC = functools.partial(
  optax_sam.sparse_sam_dynamic, refresh_every=2, total_steps=12, key=0
)
AE_SAM = functools.partial(optax_sam.ae_sam, total_steps=12)
AE_LOOK_SAM = functools.partial(optax_sam.ae_look_sam, total_steps=12)
SS_SAM = functools.partial(optax_sam.ss_sam, key=0)
LOOK_SAM = functools.partial(optax_sam.look_sam, period=2)
ESAM = functools.partial(optax_sam.esam, key=0)
OFFICIAL = functools.partial(optax_sam.friendly_sam, order='official')
FROB_SAM = functools.partial(optax_sam.frob_sam, key=0)
LPF_SGD = functools.partial(
  optax_sam.lpf_sgd, micro_batches=1, total_steps=12, key=0
)
EIGEN_SAM = functools.partial(optax_sam.eigen_sam, refresh_every=5, key=0)
GNP = optax_sam.gradient_norm_penalty
Z_SHARP = functools.partial(optax_sam.z_sharp, quantile=0.5)

WITHOUT_RADIUS = {
  'sam': optax_sam.sam,
  'sam p=inf': functools.partial(optax_sam.sam, p=np.inf),
  'sam ascent_steps=3': functools.partial(optax_sam.sam, ascent_steps=3),
  'asam': optax_sam.asam,
  'sparse_sam_fisher': FISHER,
  'sparse_sam_dynamic': DYNAMIC,
  'friendly_sam': optax_sam.friendly_sam,
  'friendly_sam official': OFFICIAL,
  'ae_sam': AE_SAM,
  'ae_look_sam': AE_LOOK_SAM,
  'look_sam': LOOK_SAM,
  'look_layer_sam': optax_sam.look_layer_sam,
  'ss_sam': SS_SAM,
  'gsam': optax_sam.gsam,
  'fisher_sam': optax_sam.fisher_sam,
  'gradient_norm_penalty': GNP,
  'wsam': optax_sam.wsam,
  'unnormalized_sam': optax_sam.unnormalized_sam,
  'le_sam': optax_sam.le_sam,
  'z_sharp': Z_SHARP,
  'z_sharp per_tensor': functools.partial(Z_SHARP, radius='per_tensor'),
  'momentum_sam': optax_sam.momentum_sam,
  'async_sam': optax_sam.async_sam,
  'cr_sam': optax_sam.cr_sam,
  'eigen_sam': EIGEN_SAM,
  'frob_sam': FROB_SAM,
  'lpf_sgd': LPF_SGD,
}
# The same rule over leaves together, however they are divided. Left out are
# those that draw, filter or scale by the leaf: ESAM, SSAM-D, Eigen-SAM,
# Frob-SAM, LPF-SGD, Look-LayerSAM, per_leaf, ZSharp.
OVER_ALL_LEAVES = {
  'sam': optax_sam.sam,
  'sam p=inf ascent_steps=2': functools.partial(
    optax_sam.sam, p=np.inf, ascent_steps=2
  ),
  'asam': optax_sam.asam,
  'sparse_sam_fisher': FISHER,
  'friendly_sam': optax_sam.friendly_sam,
  'friendly_sam official': OFFICIAL,
  'ae_sam': AE_SAM,
  'look_sam': LOOK_SAM,
  'gsam': optax_sam.gsam,
  'fisher_sam': optax_sam.fisher_sam,
  'gradient_norm_penalty normalize_clean': functools.partial(
    GNP, normalize_clean=True
  ),
  'unnormalized_sam clip': functools.partial(
    optax_sam.unnormalized_sam, clip=True
  ),
  'le_sam': optax_sam.le_sam,
  'momentum_sam': optax_sam.momentum_sam,
  'async_sam': optax_sam.async_sam,
  'cr_sam': optax_sam.cr_sam,
}

EQUAL_TO_BASE = {
  **{
    f'{name} rho=0': with_radius(method, 0.0)
    for name, method in WITHOUT_RADIUS.items()
  },
  'sparse_sam_fisher sparsity=1': with_radius(FISHER, sparsity=1),
  'sparse_sam_dynamic sparsity=1': with_radius(DYNAMIC, sparsity=1.0),
  'ss_sam probability=0': with_radius(SS_SAM, probability=0.0),
  'ae_sam lambdas=1e9': with_radius(AE_SAM, lambda_1=1e9, lambda_2=1e9),
  'gradient_norm_penalty alpha=0': with_radius(GNP, alpha=0.0),
  'wsam gamma=0': with_radius(optax_sam.wsam, gamma=0.0),
  'frob_sam penalty=0': with_radius(FROB_SAM, penalty=0.0),
  'mask all False': with_radius(optax_sam.sam, mask=False),
  'before the start': scheduled(policies.after(100)),
}
EQUAL_TO_SAM = {
  'gsam alpha=0': with_radius(optax_sam.gsam, alpha=0.0),
  'gradient_norm_penalty alpha=1': with_radius(GNP, alpha=1.0),
  'wsam gamma=0.5': with_radius(optax_sam.wsam, gamma=0.5),
  'fisher_sam eta=0': with_radius(optax_sam.fisher_sam, eta=0.0),
  'asam scaled=False': with_radius(optax_sam.asam, scaled=False),
  'sparse_sam_fisher sparsity=0': with_radius(FISHER, sparsity=0.0),
  'sparse_sam_dynamic sparsity=0': with_radius(DYNAMIC, sparsity=0.0),
  'friendly_sam sigma=0': with_radius(optax_sam.friendly_sam, sigma=0.0),
  'friendly_sam official sigma=0': with_radius(OFFICIAL, sigma=0.0),
  'look_sam period=1': with_radius(LOOK_SAM, period=1),
  'ss_sam probability=1': with_radius(SS_SAM, probability=1),
  'ae_sam lambdas=-1e9': with_radius(AE_SAM, lambda_1=-1e9, lambda_2=-1e9),
  'ae_look_sam lambdas=-1e9': with_radius(
    AE_LOOK_SAM, lambda_1=-1e9, lambda_2=-1e9
  ),
  'cr_sam gamma=0 beta=0': with_radius(optax_sam.cr_sam, gamma=0.0, beta=0.0),
  'eigen_sam alpha=0': with_radius(EIGEN_SAM, alpha=0.0),
  'le_sam sigma=inf': with_radius(optax_sam.le_sam, np.inf, rho_max=RHO),
  'mask all True': with_radius(optax_sam.sam, mask=True),
  'after the start': scheduled(policies.after(0)),
  'constant schedule': with_radius(optax_sam.sam, optax.constant_schedule(RHO)),
}
EQUAL_TO_SAM_OF_EXAMPLES = {
  'esam beta=1.0 gamma=1.0': with_radius(ESAM, beta=1.0, gamma=1.0),
  'k_sam ascent=1.0 descent=1.0': with_radius(
    optax_sam.k_sam, ascent=1.0, descent=1.0
  ),
  'subset_sam fraction=1.0': with_radius(optax_sam.subset_sam, fraction=1.0),
  'subset_sam fraction=1.0 key=3': with_radius(
    optax_sam.subset_sam, fraction=1.0, key=3
  ),
  'm_sam micro_batch_size=b': with_radius(optax_sam.m_sam, micro_batch_size=16),
}
EQUAL_PAIRS = {
  'ordered_sgd k=1.0 is the base': (
    of_examples(Side(lambda: optax_sam.ordered_sgd(k=1.0))),
    BASE_OF_EXAMPLES,
  ),
  'k_sam rho=0 is ordered_sgd': (
    of_examples(with_radius(optax_sam.k_sam, 0.0, ascent=4, descent=8)),
    of_examples(Side(lambda: optax_sam.ordered_sgd(k=8))),
  ),
  'wsam is gradient_norm_penalty': (
    with_radius(optax_sam.wsam, gamma=0.4),
    with_radius(GNP, alpha=0.4 / 0.6),
  ),
  'wsam_decoupled is wsam under plain SGD': (
    decoupled(optax.sgd(0.05), gamma=0.8, learning_rate=0.05),
    Side(lambda: optax_sam.wsam(RHO, gamma=0.8), lambda: optax.sgd(0.05)),
  ),
  'wsam_decoupled gamma=0 is its base': (
    decoupled(base(), gamma=0.0, learning_rate=optax.constant_schedule(0.1)),
    BASE,
  ),
  **{
    f'{name} in other leaves': (
      with_radius(method),
      of_one_leaf(with_radius(method)),
    )
    for name, method in OVER_ALL_LEAVES.items()
  },
}
EQUATIONS = {
  **{name: (side, BASE, BIT) for name, side in EQUAL_TO_BASE.items()},
  **{name: (side, SAM, ROUNDING) for name, side in EQUAL_TO_SAM.items()},
  **{
    name: (of_examples(side), SAM_OF_EXAMPLES, ROUNDING)
    for name, side in EQUAL_TO_SAM_OF_EXAMPLES.items()
  },
  **{name: (*sides, ROUNDING) for name, sides in EQUAL_PAIRS.items()},
}


@functools.cache
def trained(side):
  """Returns the parameters after every step."""
  steps = Replay(side.problem(), side.method(), side.optimizer()).run()
  return np.array([step.params for step in steps])


@pytest.mark.parametrize('name', EQUATIONS)
def test_equation(name):
  left, right, tolerance = EQUATIONS[name]
  np.testing.assert_allclose(
    trained(left), trained(right), rtol=0, atol=tolerance
  )


def test_sides_of_the_equations_differ_from_one_another():
  """Else they would hold of any method."""
  quartic = [SAM, BASE, with_radius(optax_sam.wsam, gamma=0.4)]
  classifier = [
    SAM_OF_EXAMPLES,
    BASE_OF_EXAMPLES,
    of_examples(Side(lambda: optax_sam.ordered_sgd(k=8))),
  ]
  for sides in (quartic, classifier):
    ends = [trained(side)[-1] for side in sides]
    for left, right in itertools.combinations(ends, 2):
      assert np.abs(left - right).max() > 1e-3
