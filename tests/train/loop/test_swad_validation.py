"""SWAD in the trainer: validations, the solution, and resuming."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
import pytest

import optax_sam
from optax_sam.train.loop.train_step import copy
from tests.train import problems
from tests.train.problems import assert_close, finished, reestimated
from tests.train.runs import (
  assert_same_end,
  interrupt,
  metrics,
  resume,
  run,
)


def trainer(model='mlp', *, steps=60, batch_size=100, **given):
  return problems.trainer(
    'swad', given=given, model=model, batch_size=batch_size, steps=steps
  )


def test_the_solution_equals_that_of_a_handwritten_loop():
  settings = {'n_converge': 2, 'n_tolerance': 2, 'tolerance': 0.1}
  one = trainer(
    'cnn', validation_share=0.5, epochs_per_validation=2, **settings
  )
  held_out = one.inputs.held_out(7)
  assert len(held_out['labels']) == 498  # half of each class

  @jax.jit
  def loss_of(params, statistics):
    logits = problems.module(one).apply(
      {'params': params, **statistics}, held_out['inputs'], train=False
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(
      logits, held_out['labels']
    )
    return jnp.mean(losses)

  losses, seen = [], []

  def after_step(now):
    seen.append(copy(now.state.params))
    losses.append(float(loss_of(now.state.params, now.state.statistics)))

  progress = finished(one, 7, after_step)
  rows = {row['step']: row for row in progress.validations}
  assert list(rows) == [10, 20, 30, 40, 50, 60]  # five steps an epoch
  averaging = optax_sam.swad(**settings)
  state = averaging.init(one.start(7).state.params)
  for step, params in enumerate(seen, start=1):
    state = averaging.accumulate(state, params)
    if step in rows:
      found = rows[step]['validation_loss']
      assert found == pytest.approx(losses[step - 1], rel=1e-5)
      state = averaging.validate(state, found)
      for name in ('first_segment', 'last_segment'):
        assert rows[step][name] == int(getattr(state, name))

  params, statistics = one.solution(progress.state)
  expected = averaging.result(progress.state.params, state)
  assert_close(params, expected)
  # It differs from the trained parameters.
  distance = optax.tree.norm(optax.tree.sub(params, progress.state.params))
  assert distance > 1e-3
  by_hand = reestimated(one, params, progress.state.statistics)
  assert_close(statistics['batch_stats'], by_hand, atol=1e-5)
  loss, _ = one.evaluate(params, statistics, one.task.inputs.test())
  assert progress.evaluations[-1]['test_loss'] == loss


def test_trained_parameters_equal_the_base_optimizer_on_the_same_examples():
  one, base = trainer(steps=12), problems.trainer('sgd', batch_size=100)
  assert base.averaging is None
  assert base.inputs is base.task.inputs
  assert base.inputs.held_out(0) is None
  base.inputs = base.task.inputs.with_held_out(0.1)
  assert one.epoch_steps == 9
  progress, plain = finished(one), finished(base)
  assert_close(progress.state.params, plain.state.params)
  assert plain.validations == []


@pytest.mark.slow
def test_resume_is_bit_identical(tmp_path):
  config = problems.train_config(
    method='swad',
    steps=300,  # the default, ignored with --epochs
    epochs=9,
    batch_size=250,
    set=('swad.n_converge=2', 'swad.validation_share=0.25'),
    output=tmp_path / 'whole',
  )
  assert run(config)[0]
  config = dataclasses.replace(config, epochs=None, steps=27)
  kinds = [row['kind'] for row in metrics(config)]
  assert kinds.count('validation') == 9
  again = dataclasses.replace(config, output=tmp_path / 'again')
  # After the validation of an epoch, and between two of them.
  interrupt(again, 12)
  interrupt(dataclasses.replace(again, resume=True), 20)
  assert 'Resuming from the checkpoint of step 20' in resume(again)
  assert_same_end(again, config)


def test_a_validation_share_that_is_too_small_or_large_raises():
  with pytest.raises(ValueError, match='holds out none of 1000 training exam'):
    trainer(validation_share=0.0001)
  with pytest.raises(ValueError, match='--batch-size must be at most 502'):
    trainer(validation_share=0.5, batch_size=600)
