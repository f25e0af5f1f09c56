"""Losses of the trainer, and what its flags make of them."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_sam.train import models
from optax_sam.train.config import configs
from optax_sam.train.loop import train_step
from optax_sam.train.loop.trainer import Progress
from optax_sam.train.optimizers.base_optimizer import base_optimizer
from tests.train import problems

STRICT = False  # Flax promotes ranks


def test_the_models_of_the_flag_are_those_that_there_are():
  assert typing.get_args(configs.Model) == models.NAMES


def test_labels_are_smoothed_in_training_alone():
  one = problems.trainer('sgd', model='mlp')
  plain = one.task
  smooth = dataclasses.replace(plain, label_smoothing=0.3)
  state, batch = one.start(0).state, one.batch(0, 0)
  where = (state.params, state.statistics, batch)
  logits = plain._apply(*where, train=False)
  targets = np.full((50, 10), 0.03)
  targets[np.arange(50), batch['labels']] += 0.7
  expected = -np.sum(targets * jax.nn.log_softmax(logits), axis=-1)
  np.testing.assert_allclose(smooth.single_losses(*where), expected, rtol=1e-5)
  assert smooth.loss(*where, state.key)[0] != plain.loss(*where, state.key)[0]
  assert smooth.evaluation_loss(*where) == plain.evaluation_loss(*where)


def test_rows_that_are_no_examples_count_nothing():
  one = problems.trainer('sgd', model='mlp')
  state, batch = one.start(0).state, one.batch(0, 0)
  counts = np.arange(50) < 20
  part = {name: values[:20] for name, values in batch.items()}
  masked = {**batch, 'is_example': counts}
  where = (state.params, state.statistics)
  loss, accuracy = one.task.evaluate(*where, part)
  total, right, examples = one.task.evaluation_sums(*where, masked)
  assert examples == 20
  assert right == round(20 * float(accuracy))
  np.testing.assert_allclose(total, 20 * loss, rtol=1e-5)
  np.testing.assert_allclose(
    one.task.evaluation_loss(*where, masked), loss, rtol=1e-5
  )


@pytest.mark.parametrize('base', ['sgd', 'adamw'])
def test_what_the_base_optimizer_gets_is_clipped(base):
  grads = {'bias': jnp.asarray([3.0, 4.0])}
  params = {'bias': jnp.zeros(2)}
  updates = []
  for norm, given in ((1.0, grads), (None, {'bias': grads['bias'] / 5})):
    config = problems.train_config(clip_norm=norm, base=base, warmup=0.0)
    tx = base_optimizer(config)
    updates.append(tx.update(given, tx.init(params), params)[0]['bias'])
  np.testing.assert_allclose(*updates, rtol=1e-6)


def test_the_method_sees_gradients_that_are_not_clipped():
  clipped, free = (
    problems.trainer('sam', clip_norm=norm, log_every=1)
    for norm in (1e-3, None)
  )
  losses = []
  for one in (clipped, free):
    state, _ = one.step(one.start(0).state, one.batch(0, 0))
    losses.append(one._method_metrics(state)['perturbed_loss'])
  assert losses[0] == losses[1]


@pytest.mark.parametrize('execution', ['jit', 'host'])
def test_weights_and_statistics_are_averaged(execution):
  one = problems.trainer(
    'ae_sam', model='cnn', ema_decay=0.75, execution=execution
  )
  state = one.start(0).state
  expected = train_step.copy((state.params, state.statistics))
  for number in range(3):
    state, _ = one.step(state, one.batch(number, 0))
    now = (state.params, state.statistics)
    expected = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, expected, now)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
    state.average,
    expected,
  )
  row = one._evaluation_row(Progress(state, 3))
  loss = one.task.evaluate(*expected, one.task.inputs.dataset.test)[0]
  assert row['ema_test_loss'] == pytest.approx(float(loss), rel=1e-4)
  assert row['ema_test_loss'] != row['test_loss']
