import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam.train.loop import evaluation, objectives, train_step
from optax_sam.train.optimizers import build
from optax_sam.train.optimizers.base_optimizer import base_optimizer
from tests.train import problems
from tests.train.problems import assert_close


def run(trainer, steps):
  state, losses = trainer.start(seed=0).state, []
  for number in range(steps):
    state, metrics = trainer.step(state, trainer.batch(number, seed=0))
    losses.append(float(metrics['loss']))
  return state, losses


@pytest.mark.parametrize(
  ('name', 'model', 'given'),
  [
    pytest.param('ss_sam', 'mlp', {}, marks=pytest.mark.slow),
    ('ae_sam', 'mlp', {'lambda_1': 1, 'lambda_2': 2.5}),
    pytest.param('ae_look_sam', 'cnn', {}, marks=pytest.mark.slow),
  ],
)
def test_host_and_jit_execution_give_the_same_numbers(name, model, given):
  results = {}
  for execution in ('host', 'jit'):
    trainer = problems.trainer(
      name, given=given, model=model, execution=execution
    )
    assert trainer.on_host == (execution == 'host')
    results[execution] = run(trainer, 6)
  host, program = results['host'], results['jit']
  ascents = optax_sam.metrics(host[0].opt_state)['second_gradients']
  assert 0 < ascents < 6  # both branches were compared
  assert_close(host[0], program[0], rtol=2e-3, atol=2e-5)
  np.testing.assert_allclose(host[1], program[1], rtol=1e-4)


def test_the_step_equals_handwritten_sam():
  trainer = problems.trainer('sam')
  problem, config = trainer.task, trainer.config
  state = trainer.start(seed=0).state
  batch = trainer.batch(3, seed=0)
  key = jax.random.fold_in(state.key, state.step)

  def loss(params):
    return jnp.mean(problem.losses(params, state.statistics, batch, key)[0])

  gradient = jax.jit(jax.grad(loss))
  grads = gradient(state.params)
  scale = 0.05 / optax.tree.norm(grads)
  there = jax.tree.map(lambda p, g: p + scale * g, state.params, grads)
  base = base_optimizer(config)
  updates, _ = base.update(
    gradient(there), base.init(state.params), state.params
  )
  expected = optax.apply_updates(state.params, updates)
  found, metrics = trainer.step(train_step.copy(state), batch)
  assert_close(found.params, expected, rtol=1e-5, atol=1e-7)
  assert metrics['loss'] == pytest.approx(float(loss(state.params)), rel=1e-5)
  trees = {'gradient': grads, 'parameter': expected, 'update': updates}
  for name, tree in trees.items():
    norm = float(optax.tree.norm(tree))
    assert metrics[f'{name}_norm'] == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize('name', ['ae_look_sam', 'saf', 'swad'])
def test_a_step_donates_its_input_state(name):
  trainer = problems.trainer(name)
  state, batch = trainer.start(seed=0).state, trainer.batch(0, seed=0)
  given = jax.tree.leaves(state)
  aliased = trainer.compile().memory_analysis().alias_size_in_bytes
  # Metrics of the previous step are not read: two bools, two numbers.
  assert 0 <= sum(leaf.nbytes for leaf in given) - aliased <= 10
  trainer.step(state, batch)
  assert all(leaf.is_deleted() for leaf in given if leaf.size > 1)


def test_running_statistics_come_from_the_first_pass_only():
  trainer = problems.trainer('sam', model='cnn', rho=1.0)
  state, batch = trainer.start(seed=0).state, trainer.batch(0, seed=0)
  key = jax.random.fold_in(state.key, state.step)
  given = (state.params, state.statistics, batch, key)
  _, expected = trainer.task.losses(*given)
  found, _ = trainer.step(state, batch)
  assert jax.tree.leaves(expected)
  assert_close(found.statistics, expected, rtol=1e-4, atol=1e-6)


def test_per_example_losses_use_the_running_statistics():
  assert build.method('sparse_sam_fisher').takes_per_example_losses
  trainer = problems.trainer('sgd', model='cnn')
  state, _ = run(trainer, 1)  # away from the initial statistics
  batch = trainer.batch(1, 0)

  def update(grads, _, params, *, per_example_value_fn, batch, **__):
    return grads, per_example_value_fn(params, batch)

  recorder = optax.GradientTransformationExtraArgs(lambda _: (), update)
  step = train_step.jitted_step(
    trainer.task, recorder, takes_per_example_losses=True
  )
  found = step(state._replace(opt_state=()), batch)[0].opt_state
  for i in range(3):
    example = {name: values[i : i + 1] for name, values in batch.items()}
    loss = trainer.task.evaluation_loss(state.params, state.statistics, example)
    assert found[i] == pytest.approx(float(loss), rel=1e-4)


def test_both_passes_use_the_same_dropout():
  # With rho=0 the perturbed gradient equals the first one if and only if both
  # passes drop the same units.
  state, _ = run(problems.trainer('sam', rho=0.0), 1)
  expected, _ = run(problems.trainer('sgd'), 1)
  assert_close(state.params, expected.params, rtol=1e-6, atol=1e-8)


def test_dropout_differs_from_step_to_step():
  trainer = problems.trainer('sgd')
  state, batch = trainer.start(seed=0).state, trainer.batch(0, seed=0)
  later = train_step.copy(state._replace(step=state.step + 1))
  _, first = trainer.step(state, batch)
  _, second = trainer.step(later, batch)
  assert first['loss'] != second['loss']


@pytest.fixture(scope='module')
def one():
  return problems.trainer('sgd')


def test_labels_are_smoothed_only_in_training(one):
  plain = one.task
  smoothed = objectives.build(label_smoothing=0.3)
  smooth = dataclasses.replace(plain, objective=smoothed)
  state, batch = one.start(0).state, one.batch(0, 0)
  where = (state.params, state.statistics, batch)
  logits = plain.evaluation_outputs(*where)
  targets = np.full((50, 10), 0.03)
  targets[np.arange(50), batch['labels']] += 0.7
  expected = -np.sum(targets * jax.nn.log_softmax(logits), axis=-1)
  np.testing.assert_allclose(
    smooth.per_example_losses(*where), expected, rtol=1e-5
  )
  found = [jnp.mean(x.losses(*where, state.key)[0]) for x in (smooth, plain)]
  assert found[0] != found[1]
  assert smooth.evaluation_loss(*where) == plain.evaluation_loss(*where)


def test_padding_rows_have_weight_zero(one):
  state, batch = one.start(0).state, one.batch(0, 0)
  counts = np.arange(50) < 20
  part = {name: values[:20] for name, values in batch.items()}
  masked = {**batch, 'is_example': counts}
  where = (state.params, state.statistics)
  loss, accuracy = map(jnp.mean, one.task.evaluate(*where, part))
  total, right, examples, _ = evaluation._sums(one.task, *where, masked)
  assert examples == 20
  assert right == round(20 * float(accuracy))
  np.testing.assert_allclose(total, 20 * loss, rtol=1e-5)
  found = one.task.evaluation_loss(*where, masked)
  np.testing.assert_allclose(found, loss, rtol=1e-5)
  # In batches, and without any example
  found = one.evaluate(*where, [masked, masked])
  np.testing.assert_allclose(found, (loss, accuracy), rtol=1e-5)
  assert np.isnan(one.evaluate(*where, [])).all()


def test_the_method_gets_unclipped_gradients():
  clipped, free = (
    problems.trainer('sam', clip_norm=norm, log_every=1)
    for norm in (1e-3, None)
  )
  losses = []
  for one in (clipped, free):
    state, _ = one.step(one.start(0).state, one.batch(0, 0))
    losses.append(one._method_metrics(state)['perturbed_loss'])
  assert losses[0] == losses[1]
