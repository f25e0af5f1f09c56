"""SAF and MESA in the trainer: steps, state and resuming."""

import dataclasses
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.train import problems
from tests.train.problems import assert_close
from tests.train.runs import metrics, resume, run

STEPS = 14  # two per epoch, so they include epochs six and seven
GIVEN = {
  'saf': {'weight': 2.0},
  'mesa': {'weight': 2.0, 'decay': 0.8, 'start_epoch': 1},
}


def trainer(name, model='mlp', **given):
  return problems.trainer(
    name, given=GIVEN[name] | given, model=model, batch_size=500, steps=STEPS
  )


def divergence(logits, targets, known):
  p, q = (jax.nn.softmax(x / 5) for x in (targets, logits))
  return 25 * jnp.mean(known * jnp.sum(p * jnp.log(p / q), axis=-1))


def by_hand(one, batch, targets, known, params, statistics, state, number):
  """Takes one step with given targets."""
  key = jax.random.fold_in(one.start(seed=0).state.key, number)

  def total(params):
    logits, after = one.task.outputs(params, statistics, batch, key)
    own = optax.softmax_cross_entropy_with_integer_labels(
      logits, batch['labels']
    )
    term = 2 * divergence(logits, targets, known)
    return jnp.mean(own) + term, (logits, after, jnp.mean(own), term)

  grads, found = jax.grad(total, has_aux=True)(params)
  updates, state = one.optimizer(0).update(grads, state, params)
  return optax.apply_updates(params, updates), state, found


def test_saf_equals_its_handwritten_rule():
  one = trainer('saf')
  state = one.start(seed=0).state
  params, opt_state = state.params, state.opt_state
  written, step, terms = {}, jax.jit(functools.partial(by_hand, one)), []
  for number in range(STEPS):
    batch, epoch = one.batch(number, seed=0), number // 2
    places = [(example, epoch % 3) for example in batch['ids'].tolist()]
    nothing = np.ones(10)
    targets = np.array([written.get(place, nothing) for place in places])
    known = np.array([epoch >= 5 and place in written for place in places])
    params, opt_state, (logits, _, loss, term) = step(
      batch, targets, known, params, state.statistics, opt_state, number
    )
    written.update(zip(places, np.asarray(logits), strict=True))
    state, metrics = one.step(state, batch)
    assert_close(state.params, params)
    # The logged loss excludes the auxiliary loss.
    np.testing.assert_allclose(metrics['loss'], loss, rtol=1e-4)
    np.testing.assert_allclose(metrics['trajectory_loss'], term, rtol=1e-3)
    terms.append(float(term))
  assert [term > 0 for term in terms] == [False] * 10 + [True] * 4
  np.testing.assert_allclose(
    state.memory.logits[batch['ids'], epoch % 3], logits, rtol=1e-3, atol=1e-4
  )
  assert len(state.memory.filled) == 1024  # of 1000 examples
  assert int(jnp.sum(state.memory.filled)) == 3000


def test_mesa_equals_its_handwritten_rule():
  one = trainer('mesa', 'cnn')
  state = one.start(seed=0).state
  params, statistics = state.params, state.statistics
  opt_state, average = state.opt_state, (params, statistics)
  assert jax.tree.leaves(statistics)  # of batch norm
  step = jax.jit(functools.partial(by_hand, one))
  targets_of = jax.jit(one.task.evaluation_outputs)
  for number in range(4):
    batch = one.batch(number, seed=0)
    average = jax.tree.map(
      lambda v, w: 0.8 * v + 0.2 * w, average, (params, statistics)
    )
    params, opt_state, (_, statistics, loss, term) = step(
      batch,
      targets_of(*average, batch),
      np.full(500, number >= 2),  # from the second epoch on
      params,
      statistics,
      opt_state,
      number,
    )
    state, metrics = one.step(state, batch)
    assert_close(
      (state.params, state.statistics, state.memory.average),
      (params, statistics, average),
    )
    np.testing.assert_allclose(metrics['loss'], loss, rtol=1e-4)
    np.testing.assert_allclose(metrics['trajectory_loss'], term, rtol=1e-3)
    assert (term > 0) == (number >= 2)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['saf', 'mesa'])
def test_resume_is_bit_identical(name, tmp_path):
  config = problems.train_config(
    method=name,
    batch_size=500,
    steps=STEPS,
    checkpoint_every=11,  # in the sixth epoch, where both losses start
    output=tmp_path / 'whole',
  )
  assert run(config)[0]
  again = dataclasses.replace(config, output=tmp_path / 'again')
  shutil.copytree(config.output, again.output)
  shutil.rmtree(again.output / 'checkpoints' / str(STEPS))
  (again.output / 'metrics.jsonl').unlink()
  assert 'Resuming from the checkpoint of step 11' in resume(again)
  assert metrics(again) == metrics(config)
  assert 'trajectory_loss' in metrics(again)[0]
