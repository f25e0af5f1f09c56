import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from optax_sam.train.loop import cost
from optax_sam.train.optimizers import build
from optax_sam.train.optimizers.registry import METHODS
from tests.train import problems
from tests.train.problems import (
  assert_close,
  assert_equal,
  finished,
  reestimated,
)

SLOW = pytest.mark.slow


def test_the_log_has_loss_and_ascent_of_each_step():
  given = {'lambda_1': 1, 'lambda_2': 2.5}
  trainer = problems.trainer('ae_sam', given=given, execution='host')
  assert trainer.on_host
  log = finished(trainer).log
  assert [row['step'] for row in log] == list(range(1, 13))
  taken = np.cumsum([row['ascended'] for row in log])
  np.testing.assert_array_equal(taken, [row['second_gradients'] for row in log])
  assert 0 < taken[-1] < 12
  for row in log:
    assert math.isnan(row['perturbed_loss']) == (not row['second_gradients'])
    assert all(isinstance(value, float | int) for value in row.values())
    # An ascent step raises the loss, to first order by rho times the norm.
    assert not row['ascended'] or row['perturbed_loss'] > row['loss']
  for name in ('loss', 'gradient_norm', 'parameter_norm', 'update_norm'):
    assert all(row[name] > 0 for row in log[1:])
  rates = [row['learning_rate'] for row in log]
  assert rates[0] == 0
  assert rates[1] == max(rates)
  # Only a single compiled function reports its memory.
  assert trainer.temporary_bytes is None


@pytest.mark.parametrize(
  ('name', 'given', 'read'),
  [
    ('swa', {'start': 0.5}, optax_sam.averaged_params),
    ('entropy_sgd', {'inner_steps': 5}, optax_sam.outer_params),
    pytest.param(
      'anti_pgd', {'sigma': 0.1}, optax_sam.without_noise, marks=SLOW
    ),
  ],
)
def test_the_solution_is_evaluated_with_recomputed_statistics(
  name, given, read
):
  trainer = problems.trainer(
    name, given=given, model='cnn', batch_size=100, steps=22
  )
  progress = finished(trainer)
  state, test = progress.state, trainer.task.inputs.test()
  params, statistics = trainer.solution(state)
  assert_equal(params, read(state.params, state.opt_state))
  by_hand = reestimated(trainer, params, state.statistics)
  assert_close(statistics['batch_stats'], by_hand, atol=1e-5)
  found = progress.evaluations[-1]['test_loss']
  assert found == trainer.evaluate(params, statistics, test)[0]
  # It differs from the trained parameters and their statistics.
  for other in ((state.params, statistics), (params, state.statistics)):
    assert found != trainer.evaluate(*other, test)[0]
  if name == 'swa':  # averages each epoch from the eleventh step
    assert int(state.opt_state[-1].average.size) == 2
  if name == 'entropy_sgd':  # its own learning rate is logged
    assert max(row['learning_rate'] for row in progress.log) == 1.0
    assert progress.log[-1]['second_gradients'] == 0


def test_the_base_optimizer_takes_no_perturbed_gradient():
  trainer = problems.trainer('sgd', log_every=5)
  state = trainer.start(0).state
  assert trainer.solution(state) == (state.params, state.statistics)
  assert trainer.external is trainer.averaging is None
  assert state.memory == ()
  log = finished(trainer).log
  assert [row['step'] for row in log] == [5, 10, 12]
  assert log[-1]['second_gradients'] == 0
  assert math.isnan(log[-1]['perturbed_loss'])


@pytest.mark.parametrize('name', METHODS)
def test_each_method_has_a_training_step_of_known_cost(name):
  rank = 2 if METHODS[name].needs_adapters else None
  model = 'cnn' if name == 'sam_on' else 'mlp'
  one = problems.trainer(name, model=model, adapter_rank=rank)
  assert build.method_settings([name], one.config)[name] == one.settings
  assert cost.repetition(one._traced().jaxpr) >= 1


@pytest.mark.slow
@pytest.mark.parametrize('name', METHODS)
def test_each_method_trains(name):
  rank = 2 if METHODS[name].needs_adapters else None
  model = 'cnn' if name == 'sam_on' else 'mlp'
  one = problems.trainer(name, model=model, adapter_rank=rank, steps=30)
  end = problems.finished(one)
  assert not end.stopped
  assert end.evaluations[-1]['test_loss'] < math.log(10)  # that of a guess


def test_training_learns():
  trainer = problems.trainer('sam', steps=60, evaluations=3)
  evaluations = finished(trainer).evaluations
  assert trainer.temporary_bytes > 0
  assert [row['step'] for row in evaluations] == [20, 40, 60]
  assert evaluations[-1]['test_accuracy'] > 0.8
  assert evaluations[-1]['test_loss'] < evaluations[0]['test_loss']
  assert 0.8 < evaluations[-1]['train_accuracy'] <= 1


def test_methods_start_from_equal_parameters_and_seeds_differ():
  sam, sgd = problems.trainer('sam'), problems.trainer('sgd')
  first, other, second = (
    one.start(seed).state.params['Dense_0']['kernel']
    for one, seed in ((sam, 0), (sgd, 0), (sam, 1))
  )
  assert jnp.array_equal(first, other)
  assert not jnp.array_equal(first, second)


def test_sharpness_is_measured_in_evaluation_mode_on_fixed_examples():
  trainer = problems.trainer('sgd')
  state = finished(trainer).state
  first = trainer.measure_sharpness(state)
  assert first['sam_sharpness'] > 0
  assert first['top_eigenvalue'] > 0
  # Dropout would make the result depend on the key.
  other = state._replace(key=jax.random.key(9), step=state.step + 7)
  assert trainer.measure_sharpness(other) == first
  broken = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), state.params)
  measured = trainer.measure_sharpness(state._replace(params=broken))
  assert all(math.isnan(value) for value in measured.values())
