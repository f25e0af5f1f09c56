import jax.numpy as jnp
import optax
import pytest

from optax_sam.train.config import configs
from optax_sam.train.optimizers import base_optimizer
from tests.train import problems

PARAMS = {'kernel': jnp.arange(1.0, 7.0).reshape(2, 3), 'bias': jnp.ones(3)}
IS_KERNEL = {'kernel': True, 'bias': False}


def config(base, *settings, **changes):
  given = tuple(f'base.{setting}' for setting in settings)
  return problems.compare_config(base=base, set=given, **changes)


def trained(tx):
  """Returns parameters after four steps on a quadratic."""
  params, state = PARAMS, tx.init(PARAMS)
  for _ in range(4):
    updates, state = tx.update(params, state, params)
    params = optax.apply_updates(params, updates)
  return params


def rate(highest):
  return optax.warmup_cosine_decay_schedule(0.0, highest, 1, 12)


@pytest.mark.parametrize(
  ('given', 'expected'),
  [
    (
      config('sgd'),
      optax.chain(
        optax.add_decayed_weights(5e-4, mask=IS_KERNEL),
        optax.sgd(rate(0.1), momentum=0.9),
      ),
    ),
    (
      config('adamw'),
      optax.adamw(rate(0.003), weight_decay=0.05, mask=IS_KERNEL),
    ),
    (
      config('sgd', 'momentum=0.5', 'nesterov=True', weight_decay=0.0),
      optax.sgd(rate(0.1), momentum=0.5, nesterov=True),
    ),
    (config('sgd', 'momentum=None', weight_decay=0), optax.sgd(rate(0.1))),
    (
      config('Lion'.lower(), 'b1=0.8', learning_rate=0.01, weight_decay=0.2),
      optax.lion(rate(0.01), b1=0.8, weight_decay=0.2, mask=IS_KERNEL),
    ),
    (config('nadam'), optax.nadam(rate(0.001))),
    (
      config('adam', weight_decay=0.2),
      optax.chain(
        optax.add_decayed_weights(0.2, mask=IS_KERNEL),
        optax.adam(rate(0.001)),
      ),
    ),
    (
      config('muon', 'ns_steps=3', "preconditioning='frobenius'"),
      optax.contrib.muon(rate(0.001), ns_steps=3),
    ),
  ],
)
def test_base_optimizer_is_that_of_optax_bit_by_bit(given, expected):
  found = trained(base_optimizer.base_optimizer(given))
  problems.assert_equal(found, trained(expected))


@pytest.mark.parametrize('name', base_optimizer.optimizers())
def test_every_base_optimizer_descends(name):
  steps = {'adadelta': 100.0, 'lars': 100.0}
  given = config(name, learning_rate=steps.get(name, 0.01), warmup=0.0)
  params = trained(base_optimizer.base_optimizer(given))
  for key, leaf in params.items():
    assert leaf.dtype == jnp.float32
    assert jnp.linalg.norm(leaf) < jnp.linalg.norm(PARAMS[key])


def test_usual_optimizers_are_offered_and_others_are_not():
  found = base_optimizer.optimizers()
  assert next(iter(found)) == 'sgd'
  usual = 'adam adamw nadam lion lamb lars rmsprop adagrad radam muon yogi'
  assert set(usual.split()) <= set(found)
  assert not {'lbfgs', 'polyak_sgd', 'sophia', 'scale_by_adam'} & set(found)
  assert configs.learning_rate(config('adam')) == 0.001
  assert configs.weight_decay(config('adam')) == 0.0


@pytest.mark.parametrize(
  ('base', 'setting', 'message'),
  [
    (
      'sgd',
      'momentun=1',
      "argument of sgd 'momentun' .* did you mean momentum",
    ),
    ('sgd', 'momentum=high', "momentum must be a number, not 'high'"),
    ('sgd', 'nesterov=1', "nesterov must be True or False, not '1'"),
    ('sgd', 'momentum=1e400', 'must be a finite number'),
    ('sgd', 'learning_rate=1', 'use --learning-rate 1'),
    ('adamw', 'weight_decay=1', 'use --weight-decay 1'),
    ('adamw', 'mask=1', "'mask' is unknown; choose one of b1, b2, eps"),
    ('adamw', 'mu_dtype=1', "'mu_dtype' is unknown"),
    ('adam', f'b1={"(" * 150}', 'b1 must be a number'),
    ('adam', f'b1={"-" * 300}1', 'must read NAME.SETTING=VALUE'),
    ('sign_sgd', 'b1=1', 'it has none'),
  ],
)
def test_arguments_are_checked(base, setting, message):
  with pytest.raises(ValueError, match=message) as error:
    base_optimizer.base_optimizer(config(base, setting))
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(('steps', 'warmup'), [(1, 0.9), (10, 0.96)])
def test_the_warm_up_leaves_a_step_for_the_decay(steps, warmup):
  given = config('sgd', steps=steps, warmup=warmup)
  rates = [
    float(base_optimizer.schedule(given)(step)) for step in range(steps + 1)
  ]
  assert rates.index(max(rates)) == steps - 1
  assert rates[-1] == 0
