"""Methods that are not first in their chain raise, with the fix."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam

A = jnp.diag(jnp.array([4.0, 2.0, 1.0]))
W = jnp.array([3.0, -1.0, 2.0])
PARAMS = {'w': jnp.ones((2, 3)), 'b': jnp.ones(2)}
MASK = {'w': True, 'b': False}
OTHERS = {'w': False, 'b': True}
chain, sam, sgd = optax.chain, optax_sam.sam(), optax.sgd(0.1)
cosine = optax.cosine_decay_schedule(0.1, 100)
b_sam = optax_sam.b_sam(num_data=10, key=0)
swa = optax_sam.swa(start=5)


def loss(w):
  return 0.5 * w @ A @ w


def around(inner, every=1):
  return optax.MultiSteps(inner, every).gradient_transformation()


def injected(build):
  return optax.inject_hyperparams(build)(0.1)


def custom(update):
  return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def doubled(updates, state, params=None):
  del params
  return jax.tree.map(lambda x: 2 * x, updates), state


RIGHT = {
  'first': chain(sam, optax.clip(1.0), sgd),
  'no method': optax.adam(0.1),
  'alone': sam,
  'in a nested chain': chain(chain(sam, optax.clip(1.0)), sgd),
  'by name': optax.named_chain(('z', sam), ('a', sgd)),
  'after transformations without effect': chain(
    optax.identity(), optax.snapshot('norm', optax.tree.norm), sam, sgd
  ),
  'in wrappers': around(
    optax.apply_if_finite(chain(optax.identity(), sam, sgd), 5)
  ),
  'injected': chain(injected(optax_sam.asam), sgd),
  'injected as a whole': injected(lambda lr: chain(sam, optax.sgd(lr))),
  'before masks of every leaf': chain(
    sam, optax.masked(sgd, MASK), optax.masked(optax.set_to_zero(), OTHERS)
  ),
  'before a mask of weight decay': chain(
    sam, optax.masked(optax.add_decayed_weights(0.1), MASK), sgd
  ),
  'before accumulation': chain(sam, around(sgd, 4)),
  'before a line search': chain(sam, optax.lbfgs()),
  'schedule-free': optax.contrib.schedule_free(chain(sam, sgd), 0.1),
  'around the base': optax_sam.wsam_decoupled(sgd, learning_rate=cosine),
  'replaces the base': chain(
    b_sam, optax.apply_if_finite(optax.identity(), 5), optax.scale(0.5)
  ),
  'alternating': chain(
    optax.clip(1.0), optax_sam.alternating(sam, chain(optax.clip(1.0), sgd))
  ),
  'averaged': chain(sam, sgd, swa, optax_sam.anti_pgd(0.1, key=0)),
  'in a wrapper whose state is a pair': optax.GradientTransformation(
    lambda params: (jnp.zeros(()), sam.init(params)), doubled
  ),
}
FIRST = r'must have the method of optax_sam first, got {} before it'
ONE = r'one method of optax_sam, got 2.*Keep one, first in optax.chain'
MASKED = r'optax.masked or optax.partition[\s\S]* mask='
DROPPED = r'inside of {}, which .*(place the method before it|ExtraArgs)'
TURNED = r'no base optimizer after .*got {}: .*gradient ascent'
LAST = r'swa and anti_pgd last, got .*{} after them'
UNCHANGED = r"every leaf after the method, got 'b' unchanged: .*set_to_zero"
ALTERNATING = r'nothing after alternating, got {} after it: .* in base'
WRONG = {
  'before a mask': (chain(sam, optax.masked(sgd, MASK)), UNCHANGED),
  'around a mask': (
    optax_sam.wsam_decoupled(optax.masked(sgd, MASK), learning_rate=0.1),
    UNCHANGED,
  ),
  'around a mask, in two calls': (
    optax_sam.alternating(sam, optax.masked(sgd, MASK)),
    UNCHANGED,
  ),
  'before a mask in a wrapper': (
    around(optax.apply_if_finite(chain(sam, optax.masked(sgd, MASK)), 5)),
    UNCHANGED,
  ),
  'after adam': (
    chain(optax.adam(0.1), sam),
    FIRST.format('scale_by_adam, scale') + '.*the sign is lost',
  ),
  'after clipping': (
    chain(optax.clip_by_global_norm(1.0), sam, sgd),
    FIRST.format('clip_by_global_norm')
    + r'.*is dropped.*optax.chain\(optax_sam.sam\(\), clip_by_global_norm',
  ),
  'after decay': (
    chain(optax.add_decayed_weights(10.0), sam, sgd),
    FIRST.format('add_decayed_weights'),
  ),
  'in a nested chain': (
    chain(chain(optax.centralize(), sam), sgd),
    FIRST.format('centralize'),
  ),
  'in the second chain': (
    chain(optax.clip(1.0), chain(sam, sgd)),
    FIRST.format('clip'),
  ),
  'by name': (
    optax.named_chain(('z', optax.zero_nans()), ('a', sam)),
    FIRST.format('zero_nans'),
  ),
  'within a wrapper': (
    around(optax.apply_if_finite(chain(optax.clip(1.0), sam, sgd), 5)),
    FIRST.format('clip'),
  ),
  'after a wrapper': (
    chain(optax.masked(optax.clip(1.0), MASK), sam, sgd),
    FIRST.format('masked'),
  ),
  'after accumulation': (
    chain(around(optax.identity(), 2), sam, sgd),
    FIRST.format('MultiSteps'),
  ),
  'after a third-party transformation': (
    chain(custom(doubled), sam, sgd),
    FIRST.format('doubled'),
  ),
  'after an unnamed transformation': (
    chain(custom(functools.partial(doubled)), sam, sgd),
    FIRST.format('the transformation number 1 of the chain'),
  ),
  'in what is built inside': (
    injected(lambda lr: chain(optax.clip(1.0), sam, optax.sgd(lr))),
    FIRST.format('the transformation number 1 of the chain'),
  ),
  'after an average': (chain(swa, sam, sgd), FIRST.format('swa')),
  'an optimizer': (
    chain(optax.clip(1.0), optax_sam.entropy_sgd(key=0)),
    FIRST.format('clip'),
  ),
  'twice': (chain(sam, optax_sam.asam(), sgd), ONE),
  'in a base': (optax_sam.lookbehind(chain(sam, sgd)), ONE),
  'and one with a base': (chain(sam, optax_sam.lookbehind(sgd)), ONE),
  'masked': (optax.masked(chain(sam, sgd), MASK), MASKED),
  'partitioned': (
    optax.partition(
      {'a': chain(sam, sgd), 'b': optax.set_to_zero()}, {'w': 'a', 'b': 'b'}
    ),
    MASKED,
  ),
  'in complex parts': (
    optax.contrib.split_real_and_imaginary(chain(sam, sgd)),
    DROPPED.format('split_real_and_imaginary'),
  ),
  'flattened': (optax.flatten(chain(sam, sgd)), DROPPED.format('flatten')),
  'in a wrapper in a chain': (
    chain(around(sam, 2), sgd),
    DROPPED.format('MultiSteps'),
  ),
  'a base after an optimizer': (chain(b_sam, sgd), TURNED.format('scale')),
  'a schedule after an optimizer': (
    chain(optax_sam.entropy_sgd(key=0), optax.adam(cosine)),
    TURNED.format('scale_by_adam, scale_by_schedule'),
  ),
  'a base after alternating': (
    chain(optax_sam.alternating(sam, sgd), sgd),
    ALTERNATING.format('scale'),
  ),
  'a decay after alternating': (
    chain(optax_sam.alternating(sam, sgd), optax.add_decayed_weights(0.1)),
    ALTERNATING.format('add_decayed_weights'),
  ),
  'an average first': (chain(swa, sgd), LAST.format('scale')),
  'an average between': (chain(sam, swa, sgd), LAST.format('scale')),
  'no transformation': (
    optax.MultiSteps(sgd, 2),
    r'got a MultiSteps: .*tx.gradient_transformation\(\)',
  ),
}


@pytest.mark.parametrize('name', RIGHT)
def test_valid_chains_are_accepted(name):
  optax_sam.check(RIGHT[name], PARAMS)
  jax.jit(lambda params: optax_sam.check(RIGHT[name], params))(PARAMS)


@pytest.mark.parametrize('name', WRONG)
def test_invalid_chains_raise(name):
  tx, message = WRONG[name]
  with pytest.raises(ValueError, match=message):
    optax_sam.check(tx, PARAMS)
  with pytest.raises(ValueError, match=message):
    jax.jit(lambda params: optax_sam.check(tx, params))(PARAMS)


def test_lookahead_raises():
  tx = optax.lookahead(chain(sam, sgd), sync_period=5, slow_step_size=0.5)
  params = optax.LookaheadParams.init_synced(PARAMS)
  with pytest.raises(ValueError, match=DROPPED.format('lookahead')):
    optax_sam.check(tx, params)


@pytest.mark.parametrize(
  ('tx', 'fixed'),
  [
    (chain(optax.sgd(0.1), sam), chain(sam, optax.sgd(0.1))),
    (chain(optax.clip(1.0), sam, sgd), chain(sam, optax.clip(1.0), sgd)),
    (
      chain(optax.add_decayed_weights(10.0), sam, sgd),
      chain(sam, optax.add_decayed_weights(10.0), sgd),
    ),
  ],
)
def test_an_invalid_chain_raises_before_the_first_step_and_the_fix_descends(
  tx, fixed
):
  loss_fn = lambda w, _: loss(w)
  wrong = jax.jit(optax_sam.make_step(loss_fn, tx))
  for _ in range(2):
    with pytest.raises(ValueError, match='the method of optax_sam first'):
      wrong(W, tx.init(W), None)
  step = jax.jit(optax_sam.make_step(loss_fn, fixed))
  _, _, output = step(W, fixed.init(W), None)
  after, _, _ = step(W, fixed.init(W), None)
  assert loss(after) < output.loss == loss(W)


def test_clipping_and_decay_after_a_method_apply_to_the_perturbed_gradient():
  grad = lambda w: np.diag(A) * w
  w = np.array(W, np.float64)
  at = grad(w + 0.05 * grad(w) / np.linalg.norm(grad(w)))
  for change, expected in (
    (optax.clip_by_global_norm(1.0), at / np.linalg.norm(at)),
    (optax.add_decayed_weights(10.0), at + 10 * w),
  ):
    tx = chain(sam, change, optax.sgd(1.0))
    step = optax_sam.make_step(lambda w, _: loss(w), tx)
    after, _, _ = step(W, tx.init(W), None)
    np.testing.assert_allclose(after, w - expected, rtol=1e-5)


@pytest.mark.parametrize(
  'tx',
  [
    sam,
    chain(sam),
    chain(optax.identity(), sam),
    chain(sam, optax.identity()),
    chain(sam, swa),
    injected(optax_sam.sam),
    optax.apply_if_finite(sam, 5),
    optax.conditionally_transform(chain(sam), lambda step: step < 5),
    optax.contrib.schedule_free(sam, 0.1),
  ],
)
def test_a_step_of_a_method_without_a_base_optimizer_raises(tx):
  with pytest.raises(ValueError, match=r'tx must end with a base optimizer'):
    optax_sam.make_step(lambda w, _: loss(w), tx)(W, tx.init(W), None)
