import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam.train.loop import train_step
from optax_sam.train.optimizers.base_optimizer import base_optimizer, schedule
from tests.train import problems

STRICT = False  # Flax promotes ranks


def assert_close(left, right, **tolerances):
  def compare(x, y):
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      x, y = jax.random.key_data(x), jax.random.key_data(y)
    np.testing.assert_allclose(x, y, **tolerances)

  jax.tree.map(compare, left, right)


def run(trainer, steps):
  return run_from(trainer, trainer.start(seed=0).state, steps)


def run_from(trainer, state, steps):
  losses = []
  for number in range(steps):
    state, metrics = trainer.step(state, trainer.batch(number, seed=0))
    losses.append(float(metrics['loss']))
  return state, losses


@pytest.mark.parametrize(
  ('name', 'model', 'given'),
  [
    ('ss_sam', 'mlp', {}),
    ('ae_sam', 'mlp', {'lambda_1': 1, 'lambda_2': 2.5}),
    ('ae_look_sam', 'cnn', {}),
  ],
)
def test_host_and_program_give_the_same_numbers(name, model, given):
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


def test_the_branch_that_ascends_convolves_in_the_order_of_fast_kernels():
  trainer = problems.trainer('ae_sam', model='cnn')
  assert trainer.config.execution == 'auto'
  assert not trainer.on_host
  text = trainer.compile().as_text()
  found = re.findall(r' convolution\(.*dim_labels=(\w+->\w+)', text)
  assert len(found) == 2 * (2 + 1 + 2)  # forward, to inputs, to kernels
  assert set(found) == {'b01f_01io->b01f'}


def test_the_step_is_sam_written_out():
  trainer = problems.trainer('sam')
  problem, config = trainer.task, trainer.config
  state = trainer.start(seed=0).state
  batch = trainer.batch(3, seed=0)
  key = jax.random.fold_in(state.key, state.step)

  def loss(params):
    return problem.loss(params, state.statistics, batch, key)[0]

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
  assert metrics['gradient_norm'] == pytest.approx(
    float(optax.tree.norm(grads)), rel=1e-5
  )
  assert metrics['parameter_norm'] == pytest.approx(
    float(optax.tree.norm(expected)), rel=1e-5
  )
  assert metrics['update_norm'] == pytest.approx(
    float(optax.tree.norm(updates)), rel=1e-5
  )


@pytest.mark.parametrize('name', ['sgd', 'ae_look_sam', 'saf', 'swad'])
def test_a_step_takes_the_memory_of_the_state_before(name):
  trainer = problems.trainer(name, ema_decay=0.9)
  state, batch = trainer.start(seed=0).state, trainer.batch(0, seed=0)
  given = jax.tree.leaves(state)
  aliased = trainer.compile().memory_analysis().alias_size_in_bytes
  # What only reports on the step before isn't read: two bools, two numbers.
  assert 0 <= sum(leaf.nbytes for leaf in given) - aliased <= 10
  trainer.step(state, batch)
  assert all(leaf.is_deleted() for leaf in given if leaf.size > 1)


@pytest.mark.parametrize('name', ['sam', 'ae_sam'])
def test_running_statistics_come_from_the_clean_pass_only(name):
  trainer = problems.trainer(name, model='cnn', rho=1.0)
  state, batch = trainer.start(seed=0).state, trainer.batch(0, seed=0)
  key = jax.random.fold_in(state.key, state.step)
  _, expected = trainer.task.loss(state.params, state.statistics, batch, key)
  found, _ = trainer.step(state, batch)
  assert jax.tree.leaves(expected)
  assert_close(found.statistics, expected, rtol=1e-4, atol=1e-6)


def test_fisher_information_uses_the_running_statistics():
  trainer = problems.trainer(
    'sparse_sam_fisher', given={'num_samples': 3}, model='cnn'
  )
  state = trainer.start(seed=0).state
  # Two steps on: away from the initial statistics, and from a refresh.
  state, _ = run_from(trainer, state, 2)
  batch = trainer.batch(2, seed=0)

  def loss(params, example):
    return trainer.task.evaluation_loss(params, state.statistics, example)

  gradient = jax.jit(jax.grad(loss))
  examples = [
    jax.tree.map(lambda x, i=i: x[i : i + 1], batch) for i in range(3)
  ]
  squares = [
    jax.tree.map(jnp.square, gradient(state.params, example))
    for example in examples
  ]
  scores = jax.tree.map(lambda *s: sum(s), *squares)
  ranked = np.sort(
    np.concatenate([np.ravel(s) for s in jax.tree.leaves(scores)])
  )

  # As at a refresh, whatever the number of steps in an epoch.
  count = jnp.zeros((), jnp.int32)
  method_state, base_state = state.opt_state
  radius, fisher = method_state.perturbation
  fisher = fisher._replace(count=count)
  method_state = method_state._replace(perturbation=(radius, fisher))
  found, _ = trainer.step(
    state._replace(opt_state=(method_state, base_state)), batch
  )
  mask = found.opt_state[0].perturbation[1].mask
  kept = int(sum(jnp.sum(leaf) for leaf in jax.tree.leaves(mask)))
  assert kept == len(ranked) // 2
  threshold = (ranked[-kept] + ranked[-kept - 1]) / 2
  chosen = jax.tree.map(lambda s: s > threshold, scores)
  different = jax.tree.map(lambda x, y: jnp.sum(x != y), mask, chosen)
  # But for entries that differ by rounding about the threshold.
  assert sum(jax.tree.leaves(different)) <= 0.005 * len(ranked)


def test_both_passes_see_the_same_dropout():
  # With rho=0 the second gradient is the first one, if and only if the same
  # units are dropped in both passes.
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


def test_weight_decay_spares_biases():
  config = dataclasses.replace(problems.compare_config(), weight_decay=1.0)
  params = {'kernel': jnp.ones((2, 2)), 'bias': jnp.ones(2)}
  for base in ('sgd', 'adamw'):
    tx = base_optimizer(dataclasses.replace(config, base=base))
    state = tx.init(params)
    for _ in range(3):
      updates, state = tx.update(
        jax.tree.map(jnp.zeros_like, params), state, params
      )
    assert jnp.all(updates['kernel'] < 0)
    assert jnp.all(updates['bias'] == 0)


def test_the_schedule_rises_then_falls_to_zero():
  config = problems.compare_config(steps=100, warmup=0.1, learning_rate=0.3)
  rates = schedule(config)
  assert rates(0) == 0
  assert rates(10) == pytest.approx(0.3)
  assert rates(100) == pytest.approx(0, abs=1e-6)
