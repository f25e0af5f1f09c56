import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from optax_sam.train.commands import timing
from optax_sam.train.loop.trainer import evenly_spaced
from tests.train import problems

STRICT = False  # Flax promotes ranks


def finished(trainer, seed=0):
  progress = trainer.start(seed)
  trainer.run(progress, seed)
  return progress


@pytest.fixture(scope='module')
def ae_sam():
  given = {'lambda_1': 1, 'lambda_2': 2.5}
  trainer = problems.trainer('ae_sam', given=given, execution='host')
  trainer.compile()
  return trainer


def test_the_log_says_what_happened(ae_sam):
  progress = finished(ae_sam)
  assert [row['step'] for row in progress.log] == list(range(1, 13))
  taken = np.cumsum([row['ascended'] for row in progress.log])
  np.testing.assert_array_equal(
    taken, [row['second_gradients'] for row in progress.log]
  )
  assert 0 < taken[-1] < 12
  for row in progress.log:
    assert math.isnan(row['perturbed_loss']) == (not row['second_gradients'])
    assert all(isinstance(value, float | int) for value in row.values())
  for name in ('loss', 'gradient_norm', 'parameter_norm', 'update_norm'):
    assert all(row[name] > 0 for row in progress.log[1:])
  rates = [row['learning_rate'] for row in progress.log]
  assert rates[0] == 0
  assert rates[1] == max(rates)


def test_the_perturbed_loss_is_known_on_the_host_too(ae_sam):
  assert ae_sam.on_host
  ascents = [row for row in finished(ae_sam).log if row['ascended']]
  # Ascent raises the loss, to first order by rho times the norm.
  for row in ascents:
    assert row['perturbed_loss'] > row['loss']


def test_what_a_method_has_found_is_evaluated():
  trainer = problems.trainer('entropy_sgd', given={'inner_steps': 5})
  progress = finished(trainer)
  state, (found, _) = progress.state, trainer.solution(progress.state)
  outer = optax_sam.outer_params(state.params, state.opt_state)
  jax.tree.map(np.testing.assert_array_equal, found, outer)
  losses = [
    trainer._evaluate(x, state.statistics, trainer.task.inputs.test())[0]
    for x in (found, state.params)
  ]
  assert progress.evaluations[-1]['test_loss'] == pytest.approx(losses[0])
  assert losses[0] != pytest.approx(losses[1], rel=1e-4)
  # The log is of the optimizer's own learning rate, which ascends nowhere.
  assert max(row['learning_rate'] for row in progress.log) == 1.0
  assert progress.log[-1]['second_gradients'] == 0


def test_the_base_optimizer_takes_no_second_gradient():
  log = finished(problems.trainer('sgd', log_every=5)).log
  assert [row['step'] for row in log] == [5, 10, 12]
  assert log[-1]['second_gradients'] == 0
  assert math.isnan(log[-1]['perturbed_loss'])


def test_training_learns():
  trainer = problems.trainer('sam', steps=60, evaluations=3)
  evaluations = finished(trainer).evaluations
  assert [row['step'] for row in evaluations] == [20, 40, 60]
  assert evaluations[-1]['test_accuracy'] > 0.8
  assert evaluations[-1]['test_loss'] < evaluations[0]['test_loss']
  assert 0.8 < evaluations[-1]['train_accuracy'] <= 1


def test_all_methods_start_alike_and_seeds_differ():
  sam, sgd = problems.trainer('sam'), problems.trainer('sgd')
  first, other = sam.start(0).state.params, sgd.start(0).state.params
  assert all(jax.tree.leaves(jax.tree.map(jnp.array_equal, first, other)))
  second = sam.start(1).state.params
  kernel = ('Dense_0', 'kernel')
  assert not jnp.array_equal(
    first[kernel[0]][kernel[1]], second[kernel[0]][kernel[1]]
  )


def test_one_compilation_serves_all_seeds():
  trainer = problems.trainer('ss_sam', execution='jit')
  trainer.compile()
  ascents = [
    [row['ascended'] for row in finished(trainer, seed).log] for seed in (0, 1)
  ]
  # The compiled step takes no other program, and the coins still differ.
  assert isinstance(trainer.compile(), jax.stages.Compiled)
  assert trainer.compile(accuracy=1.0) is trainer.compile()
  assert ascents[0] != ascents[1]


def test_a_method_without_the_clean_gradient_does_not_pay_for_it():
  flops = {}
  for name in ('sgd', 'sam', 'k_sam'):
    trainer = problems.trainer(name, model='cnn')
    flops[name] = trainer.compile().cost_analysis()['flops']
  # A forward over all examples, two gradients over a third: 1/3 + 1/3 + 1/3.
  assert flops['k_sam'] < 1.15 * flops['sgd']
  assert flops['sam'] > 1.8 * flops['sgd']


def test_memory_is_known_where_the_step_is_one_program(ae_sam):
  one_program = problems.trainer('sam')
  one_program.compile()
  assert one_program.temporary_bytes > 0
  assert ae_sam.temporary_bytes is None


def test_sharpness_is_measured_in_evaluation_mode_on_fixed_examples():
  trainer = problems.trainer('sgd')
  state = finished(trainer).state
  first = trainer.measure_sharpness(state)
  assert first['sam_sharpness'] > 0
  assert first['top_eigenvalue'] > 0
  # Dropout would make another key count.
  other = state._replace(key=jax.random.key(9), step=state.step + 7)
  assert trainer.measure_sharpness(other) == first


def test_a_diverged_run_is_measured_as_nan():
  trainer = problems.trainer('sgd')
  state = trainer.start(0).state
  broken = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), state.params)
  measured = trainer.measure_sharpness(state._replace(params=broken))
  assert all(math.isnan(value) for value in measured.values())


@pytest.mark.parametrize(
  ('steps', 'count', 'expected'),
  [(10, 2, {5, 10}), (3, 5, {1, 2, 3}), (300, 1, {300})],
)
def test_evaluations_end_with_the_last_step(steps, count, expected):
  assert evenly_spaced(steps, count) == expected


def test_timing_takes_turns_and_is_relative_to_the_same_round(monkeypatch):
  clock = iter(range(1000))
  # Every turn takes one second of this clock, the base's two.
  turns = []

  def turn(trainer, start):
    turns.append((trainer, start))
    next(clock)
    return 2.0 if trainer.name == 'sgd' else 1.0

  class Named:
    temporary_bytes = 7

    def __init__(self, name):
      self.name = name

  trainers = {name: Named(name) for name in ('sgd', 'sam')}
  starts = {'sgd': [0, 1], 'sam': [2, 3]}
  monkeypatch.setattr(timing, '_turn', turn)
  rounds = []
  found = timing.measure(
    trainers,
    starts,
    base='sgd',
    rounds=3,
    after_round=lambda: rounds.append(len(turns)),
  )
  one_round = [
    (trainers['sgd'], 0),
    (trainers['sam'], 2),
    (trainers['sgd'], 1),
    (trainers['sam'], 3),
  ]
  assert turns == 4 * one_round  # the first round warms up
  assert rounds == [8, 12, 16]
  assert [timing.method for timing in found] == ['sgd', 'sam']
  assert found[0].relative == [1.0] * 3
  assert found[1].relative == [0.5] * 3
  assert found[1].milliseconds == [1000 / timing.STEPS_A_TURN] * 3
  assert found[1].temporary_bytes == 7


def test_a_turn_runs_the_steps_of_the_run(monkeypatch):
  trainer = problems.trainer('sgd')
  steps, accuracies = [], []
  inner = trainer.compile()

  def step(state, batch):
    steps.append((int(state.step), batch['labels'].tolist()))
    return inner(state, batch)

  def compiled(accuracy):
    accuracies.append(accuracy)
    return step

  monkeypatch.setattr(trainer, 'compile', compiled)
  start = finished(trainer)
  steps.clear()
  start.best_train_accuracy = 0.7
  assert timing._turn(trainer, start) > 0
  assert accuracies[-1] == 0.7
  assert steps == [
    (number, trainer.batch(number, 0)['labels'].tolist())
    for number in range(12, 12 + timing.STEPS_A_TURN)
  ]
