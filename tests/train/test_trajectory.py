"""SAF and MESA in the trainer: the steps, what is kept, and going on."""

import dataclasses
import io
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

from optax_sam.train.commands import train
from optax_sam.train.data import datasets
from optax_sam.train.loop.trainer import Trainer
from optax_sam.train.optimizers import build, registry
from tests.train import problems

STRICT = False  # Flax promotes ranks

STEPS = 14  # of two an epoch, so that the sixth and the seventh are in it
GIVEN = {'saf': {'weight': 2.0}, 'mesa': {'weight': 2.0, 'decay': 0.8}}


def trainer(name, model='mlp', **given):
  return problems.trainer(
    name, given=GIVEN[name] | given, model=model, batch_size=500, steps=STEPS
  )


def divergence(logits, targets, known):
  p, q = (jax.nn.softmax(x / 5) for x in (targets, logits))
  return 25 * jnp.mean(known * jnp.sum(p * jnp.log(p / q), axis=-1))


def by_hand(one, batch, targets, known, params, statistics, state, number):
  """Takes one step; targets are given."""
  key = jax.random.fold_in(one.start(seed=0).state.key, number)

  def total(params):
    logits, after = one.task.logits(params, statistics, batch, key)
    own = optax.softmax_cross_entropy_with_integer_labels(
      logits, batch['labels']
    )
    term = 2 * divergence(logits, targets, known)
    return jnp.mean(own) + term, (logits, after, jnp.mean(own), term)

  grads, found = jax.grad(total, has_aux=True)(params)
  updates, state = one.optimizer(0).update(grads, state, params)
  return optax.apply_updates(params, updates), state, found


def compiled(one):
  return jax.jit(lambda *args: by_hand(one, *args))


def assert_close(found, expected):
  for x, y in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-6)


def test_saf_is_its_rule_written_out():
  one = trainer('saf')
  state = one.start(seed=0).state
  params, opt_state = state.params, state.opt_state
  written, step, terms = {}, compiled(one), []
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
    # The loss that is logged has no term in it.
    np.testing.assert_allclose(metrics['loss'], loss, rtol=1e-4)
    np.testing.assert_allclose(metrics['trajectory_loss'], term, rtol=1e-3)
    terms.append(float(term))
  assert [term > 0 for term in terms] == [False] * 10 + [True] * 4
  np.testing.assert_allclose(
    state.memory.logits[batch['ids'], epoch % 3], logits, rtol=1e-3, atol=1e-4
  )
  assert len(state.memory.filled) == 1024  # of 1000 examples
  assert int(jnp.sum(state.memory.filled)) == 3000


def test_mesa_is_its_rule_written_out():
  one = trainer('mesa', 'cnn')
  state = one.start(seed=0).state
  params, statistics = state.params, state.statistics
  opt_state, average = state.opt_state, (params, statistics)
  assert jax.tree.leaves(statistics)  # of batch norm
  step, targets_of = compiled(one), jax.jit(one.task.evaluation_logits)
  for number in range(4):
    batch = one.batch(number, seed=0)
    average = jax.tree.map(
      lambda v, w: 0.8 * v + 0.2 * w, average, (params, statistics)
    )
    params, opt_state, (_, statistics, loss, term) = step(
      batch,
      targets_of(*average, batch),
      np.ones(500),
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
  assert term > 0


@pytest.mark.parametrize('name', ['saf', 'mesa'])
def test_without_a_weight_it_is_the_base_optimizer(name):
  plain = problems.trainer('sgd', batch_size=500, steps=STEPS)
  ends = []
  for one in (plain, trainer(name, weight=0.0)):
    progress = one.start(seed=0)
    one.run(progress, seed=0)
    ends.append((progress.state.params, progress.state.opt_state[1:]))
  assert_close(*ends)


def test_ids_are_those_of_the_examples():
  inputs = trainer('saf').task.inputs
  for step in range(3):
    batch = inputs.batch(step, 0, ids=True)
    plain = inputs.batch(step, 0)
    assert plain.keys() == {'inputs', 'labels'}
    ids = batch.pop('ids')
    assert ids.dtype == np.int32
    for name, values in inputs.dataset.train.items():
      np.testing.assert_array_equal(batch[name], plain[name])
      np.testing.assert_array_equal(values[ids], plain[name])


def test_each_process_has_the_ids_of_its_rows():
  whole = problems.small_task('mlp', 50).inputs.batch(3, 0, ids=True)
  parts = [
    problems.small_task('mlp', 50, (index, 2)).inputs.batch(3, 0, ids=True)
    for index in (0, 1)
  ]
  np.testing.assert_array_equal(
    np.concatenate([part['ids'] for part in parts]), whole['ids']
  )


@pytest.mark.parametrize('name', ['saf', 'mesa'])
def test_a_run_goes_on_to_the_bit(name, tmp_path, monkeypatch):
  small = datasets.load('digits')
  few = {key: values[:60] for key, values in small.train.items()}
  monkeypatch.setattr(
    datasets, 'load', lambda *_, **__: dataclasses.replace(small, train=few)
  )
  config = problems.train_config(
    method=name,
    batch_size=30,
    steps=STEPS,
    checkpoint_every=11,  # in the sixth epoch, where SAF has targets
    output=tmp_path / 'whole',
  )
  console = Console(file=io.StringIO())
  assert train.run(config, console)
  again = dataclasses.replace(config, output=tmp_path / 'again', resume=True)
  shutil.copytree(config.output, again.output)
  shutil.rmtree(again.output / 'checkpoints' / str(STEPS))
  (again.output / 'metrics.jsonl').unlink()
  assert train.run(again, console)
  assert 'Resuming from the checkpoint of step 11' in console.file.getvalue()
  found, expected = (
    (path.output / 'metrics.jsonl').read_bytes() for path in (again, config)
  )
  assert found == expected
  assert b'"trajectory_loss"' in found


def test_only_terms_of_the_loss_keep_anything_beside_the_optimizer():
  for name in ('sgd', 'sam'):
    one = problems.trainer(name)
    assert one.term is None
    assert one.start(seed=0).state.memory == ()
  assert {
    name for name in registry.METHODS if build.term(name, {}) is not None
  } == {'saf', 'mesa'}


def test_a_bad_setting_names_the_method():
  config = problems.train_config(method='saf', set=('saf.lag=0',))
  with pytest.raises(ValueError, match='saf: lag must be at least 1'):
    train.method_settings(config)
  assert 'axis_name' not in build.settable('saf')
  assert isinstance(trainer('saf'), Trainer)
