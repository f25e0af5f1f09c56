import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_sam.train.loop import evaluation, train_step
from optax_sam.train.optimizers import registry
from tests.train import problems
from tests.train.problems import assert_equal, finished

LONG = {'steps': 200, 'batch_size': 100}  # 10 steps per epoch
RULE = registry.METHODS['ordered_sgd'].defaults['k']


@pytest.fixture(scope='module')
def trainer():
  return problems.trainer('ordered_sgd', **LONG)


def test_the_fraction_falls_at_the_published_accuracies():
  fractions = {0.8: 1.0, 0.9: 1 / 2, 0.95: 1 / 4, 0.995: 1 / 8, 1.01: 1 / 16}
  lowest = 0.0
  for end, fraction in fractions.items():
    assert RULE.at(lowest) == RULE.at(end - 1e-3) == fraction
    lowest = end


def test_an_accuracy_equal_to_the_threshold_counts(trainer, monkeypatch):
  state = trainer.start(0).state
  for accuracy, fraction in RULE.then:
    # The evaluation returns float32, and 0.9 in float32 is below 0.9.
    found = jnp.float32(0.0), jnp.float32(accuracy), jnp.zeros(1000)
    monkeypatch.setattr(evaluation, '_evaluated', lambda *_, found=found: found)
    assert RULE.at(trainer._train_accuracy(state)) == fraction


@pytest.mark.parametrize(('accuracy', 'fraction'), [(0.0, 1.0), RULE.then[0]])
def test_a_step_uses_the_fraction_of_its_accuracy(accuracy, fraction, trainer):
  fixed = problems.trainer('ordered_sgd', given={'k': fraction}, **LONG)
  state, batch = trainer.start(0).state, trainer.batch(0, seed=0)
  # Away from step 0, where the learning rate is 0.
  state, _ = trainer.step(state, batch)
  found, _ = trainer.step(train_step.copy(state), batch, accuracy)
  expected, _ = fixed.step(state, batch)
  assert_equal(found.params, expected.params)


def test_the_fraction_never_rises(monkeypatch):
  trainer = problems.trainer('ordered_sgd', batch_size=500)  # 2 steps per epoch
  measured = iter([0.5, 0.85, 0.6, 0.97, 0.92, 1.0])
  monkeypatch.setattr(trainer, '_train_accuracy', lambda _: next(measured))
  inner, taken = trainer.step, []

  def step(state, batch, accuracy):
    taken.append(RULE.at(accuracy))
    return inner(state, batch, accuracy)

  monkeypatch.setattr(trainer, 'step', step)
  progress = finished(trainer)
  epochs = [(0.0, 1.0), (0.5, 1.0), (0.85, 0.5), (0.85, 0.5)]
  epochs += [(0.97, 0.125), (0.97, 0.125)]
  assert [
    (row['best_train_accuracy'], row['setting_k']) for row in progress.log
  ] == [epoch for epoch in epochs for _ in range(2)]
  assert [row['setting_k'] for row in progress.log] == taken
  assert progress.best_train_accuracy == 1.0
  assert next(measured, None) is None  # one evaluation per epoch


def test_the_setting_depends_on_the_accuracy_of_the_run(trainer):
  train = trainer.task.inputs.train()

  @jax.jit
  def correct(params):
    logits = problems.module(trainer).apply(
      {'params': params}, train['inputs'], train=False
    )
    return jnp.sum(jnp.argmax(logits, axis=-1) == train['labels'])

  fractions, best = [], 0.0

  def after_step(progress):
    nonlocal best
    fractions.append(RULE.at(best))
    if progress.step % 10 == 0:
      best = max(best, int(correct(progress.state.params)) / 1000)

  progress = finished(trainer, 1, after_step)
  assert [row['setting_k'] for row in progress.log] == fractions
  assert fractions[0] == 1
  assert len(set(fractions)) > 2
  assert fractions == sorted(fractions, reverse=True)


def test_a_given_value_is_constant(monkeypatch):
  def unexpected(_):
    raise AssertionError

  trainer = problems.trainer('ordered_sgd', given={'k': 0.5})
  monkeypatch.setattr(trainer, '_train_accuracy', unexpected)
  progress = finished(trainer)
  assert not {'setting_k', 'best_train_accuracy'} & progress.log[-1].keys()
  assert trainer.settings == {'k': 0.5}
  assert np.isfinite(progress.log[-1]['loss'])
