import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam.train.loop import train_step
from optax_sam.train.loop.trainer import evaluation
from optax_sam.train.optimizers import registry
from optax_sam.train.optimizers.base_optimizer import base_optimizer
from tests.train import problems

STRICT = False  # Flax promotes ranks

LONG = {'steps': 200, 'batch_size': 100}  # 10 steps an epoch
RULE = registry.METHODS['ordered_sgd'].defaults['k']


def assert_same(left, right):
  jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.fixture(scope='module')
def trainer():
  return problems.trainer('ordered_sgd', **LONG)


@pytest.mark.parametrize(
  ('accuracy', 'share'),
  [
    (0.0, 1.0),
    (0.799, 1.0),
    (0.8, 1 / 2),
    (0.899, 1 / 2),
    (0.9, 1 / 4),
    (0.949, 1 / 4),
    (0.95, 1 / 8),
    (0.994, 1 / 8),
    (0.995, 1 / 16),
    (1.0, 1 / 16),
  ],
)
def test_the_share_falls_at_the_accuracies_of_the_authors(accuracy, share):
  assert RULE.at(accuracy) == share


@pytest.mark.parametrize(('accuracy', 'share'), RULE.then)
def test_an_accuracy_that_is_exactly_reached_counts(
  accuracy, share, trainer, monkeypatch
):
  # As the evaluation returns it; nine tenths in float32 are below 0.9.
  found = jnp.float32(0.0), jnp.float32(accuracy)
  monkeypatch.setattr(evaluation, 'whole', lambda *_: found)
  assert RULE.at(trainer._train_accuracy(trainer.start(0).state)) == share


@pytest.mark.parametrize(('accuracy', 'share'), [(0.0, 1.0), *RULE.then])
def test_a_step_is_that_of_the_share(accuracy, share, trainer):
  fixed = problems.trainer('ordered_sgd', given={'k': share}, **LONG)
  state, batch = trainer.start(0).state, trainer.batch(0, seed=0)
  # Away from step 0, where the learning rate is 0.
  state, _ = trainer.step(state, batch)
  found, _ = trainer.step(train_step.copy(state), batch, accuracy)
  expected, _ = fixed.step(state, batch)
  assert_same(found.params, expected.params)


def test_the_share_never_rises_again(monkeypatch):
  trainer = problems.trainer('ordered_sgd', batch_size=500)  # 2 steps an epoch
  measured = iter([0.5, 0.85, 0.6, 0.97, 0.92, 1.0])
  monkeypatch.setattr(trainer, '_train_accuracy', lambda _: next(measured))
  inner, taken = trainer.step, []

  def step(state, batch, accuracy):
    taken.append(RULE.at(accuracy))
    return inner(state, batch, accuracy)

  monkeypatch.setattr(trainer, 'step', step)
  progress = trainer.start(0)
  trainer.run(progress, 0)
  epochs = [(0.0, 1.0), (0.5, 1.0), (0.85, 0.5), (0.85, 0.5)]
  epochs += [(0.97, 0.125), (0.97, 0.125)]
  assert [
    (row['best_train_accuracy'], row['setting_k']) for row in progress.log
  ] == [epoch for epoch in epochs for _ in range(2)]
  assert [row['setting_k'] for row in progress.log] == taken
  assert progress.best_train_accuracy == 1.0
  assert next(measured, None) is None  # one evaluation an epoch


def test_a_run_follows_its_own_accuracy(trainer):
  train = trainer.task.inputs.train()
  count = jax.jit(
    lambda state: jnp.sum(
      jnp.argmax(
        trainer.task.model.apply(
          {'params': state.params}, train['inputs'], train=False
        ),
        axis=-1,
      )
      == train['labels']
    )
  )
  for seed in (0, 1):
    shares, best = [], 0.0

    def after_step(progress, shares=shares):
      nonlocal best
      shares.append(RULE.at(best))
      if progress.step % 10 == 0:
        best = max(best, int(count(progress.state)) / 1000)

    progress = trainer.start(seed)
    trainer.run(progress, seed, after_step)
    assert [row['setting_k'] for row in progress.log] == shares
    assert shares[0] == 1  # each seed starts anew
    assert len(set(shares)) > 2
    assert shares == sorted(shares, reverse=True)


def test_the_largest_program_counts_for_the_memory(trainer):
  sizes = []
  for accuracy in (0.0, 0.9):
    program = trainer.compile(accuracy)
    sizes.append(program.memory_analysis().temp_size_in_bytes)
  assert trainer.temporary_bytes >= max(sizes) > min(sizes)


def test_a_given_value_stays(monkeypatch):
  def unexpected(_):
    raise AssertionError

  trainer = problems.trainer('ordered_sgd', given={'k': 0.5})
  monkeypatch.setattr(trainer, '_train_accuracy', unexpected)
  progress = trainer.start(0)
  trainer.run(progress, 0)
  assert not {'setting_k', 'best_train_accuracy'} & progress.log[-1].keys()
  assert trainer.settings == {'k': 0.5}

  step = train_step.in_one_program(
    trainer.task,
    optax.chain(optax_sam.ordered_sgd(k=0.5), base_optimizer(trainer.config)),
    uses_gradient=False,
  )
  state = trainer.start(0).state
  for number in range(trainer.config.steps):
    state, _ = step(state, trainer.batch(number, seed=0))
  assert_same(progress.state.params, state.params)


def test_the_report_shows_a_rule():
  assert str(RULE) == (
    '1.0 (0.5 from 80%, 0.25 from 90%, 0.125 from 95%, 0.0625 from 99.5%'
    ' training accuracy)'
  )
