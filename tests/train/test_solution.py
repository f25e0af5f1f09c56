"""What a run has found, where it isn't what it trains."""

import inspect

import jax
import numpy as np
import pytest

import optax_sam
from optax_sam.flax import reestimate_batch_norm
from optax_sam.train.loop import evaluation
from optax_sam.train.optimizers import build, registry
from tests.train import problems

STRICT = False  # Flax promotes ranks

GIVEN = {'swa': {'start': 0.5}, 'anti_pgd': {'sigma': 0.1}}
READ = {'swa': optax_sam.averaged_params, 'anti_pgd': optax_sam.without_noise}


def finished(name):
  trainer = problems.trainer(
    name, given=GIVEN[name], model='cnn', batch_size=100, steps=30
  )
  progress = trainer.start(0)
  trainer.run(progress, 0)
  return trainer, progress


@pytest.mark.parametrize('name', READ)
def test_the_solution_is_evaluated_with_statistics_of_its_own(name):
  trainer, progress = finished(name)
  state, inputs = progress.state, trainer.task.inputs
  params, statistics = trainer.solution(state)
  expected = READ[name](state.params, state.opt_state)
  jax.tree.map(np.testing.assert_array_equal, params, expected)

  train = inputs.train()
  count = len(train['labels']) // 100
  batches = [
    {key: x[first : count * 100 : count] for key, x in train.items()}
    for first in range(count)
  ]

  def changed(variables, batch):
    return trainer.task.model.apply(
      variables, batch['inputs'], train=True, mutable=['batch_stats']
    )[1]

  variables = {'params': params, **state.statistics}
  by_hand = reestimate_batch_norm(changed, variables, batches)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
    statistics['batch_stats'],
    by_hand['batch_stats'],
  )

  row = progress.evaluations[-1]
  loss, accuracy = evaluation.evaluate(
    trainer.task, params, statistics, inputs.test(), trainer.placement
  )
  assert (row['test_loss'], row['test_accuracy']) == (loss, accuracy)
  # It could be told from what is trained, and from the statistics of that.
  for other in ((state.params, statistics), (params, state.statistics)):
    loss, _ = evaluation.evaluate(
      trainer.task, *other, inputs.test(), trainer.placement
    )
    assert loss != row['test_loss']


def test_weights_are_averaged_once_an_epoch_from_a_share_of_the_run_on():
  trainer, progress = finished('swa')
  (_, state) = progress.state.opt_state
  # Thirty steps, from the fifteenth on.
  entered = range(15, 31, trainer.epoch_steps)
  assert int(state.average.size) == len(entered)


def test_what_is_trained_is_the_solution_of_all_others():
  found = {
    name
    for name in registry.METHODS
    if build.solution(name) is not None or build.averaging(name, {})
  }
  assert found == {'anti_pgd', 'entropy_sgd', 'swa', 'swad'}
  trainer = problems.trainer('sam', model='cnn')
  state = trainer.start(0).state
  assert trainer.solution(state) == (state.params, state.statistics)


@pytest.mark.parametrize('bad', [-0.1, 1.1, 'late'])
def test_a_bad_start(bad):
  config = problems.compare_config()
  with pytest.raises(ValueError, match='swa: start must be'):
    build.optimizer('swa', {'start': bad}, config, seed=0)


def test_swa_of_the_trainer_says_what_it_sets():
  parameters = inspect.signature(registry.METHODS['swa'].factory).parameters
  assert build.settable('swa') == ('start',)
  assert parameters['start'].default == 0.75
