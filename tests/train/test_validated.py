"""SWAD in the trainer: what is held out, validations, and going on."""

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

import optax_sam
from optax_sam.flax import reestimate_batch_norm
from optax_sam.train.commands import train
from optax_sam.train.data import datasets, inputs
from optax_sam.train.loop import swad_validation
from optax_sam.train.loop.train_step import copy
from optax_sam.train.optimizers import build, registry
from tests.train import problems
from tests.train.test_single import assert_same_end, interrupt_at

STRICT = False  # Flax promotes ranks

CLASSES = 5
NUMBERED = datasets.Dataset(
  # Every example is its own number.
  train={'inputs': np.arange(203), 'labels': np.arange(203) % CLASSES},
  test={'inputs': np.arange(7), 'labels': np.arange(7) % CLASSES},
  classes=CLASSES,
)


def in_batches(examples, seed, epochs=3):
  """Returns the examples of all batches of some epochs."""
  steps = epochs * inputs.steps_per_epoch(examples)
  batches = [examples.batch(step, seed) for step in range(steps)]
  return np.concatenate([batch['inputs'] for batch in batches])


@pytest.mark.parametrize('share', [0.1, 0.25, 0.5])
def test_what_is_held_out_is_in_no_batch(share):
  examples = inputs.InMemory(NUMBERED, 9, (0, 1)).holding_out(share)
  chosen = {}
  for seed in (3, 4, 3):
    held_out = examples.held_out(seed)
    again = chosen.setdefault(seed, held_out)
    jax.tree.map(np.testing.assert_array_equal, again, held_out)
    shown = in_batches(examples, seed)
    assert not set(shown) & set(held_out['inputs'])
    # Some are left out of an epoch as they don't fill a batch, but not of all.
    left = len(NUMBERED.train['labels']) - len(held_out['labels'])
    assert len(set(shown)) > 0.95 * left
    assert examples.train_examples == left
    count = np.bincount(held_out['labels'], minlength=CLASSES)
    whole = np.bincount(NUMBERED.train['labels'])
    np.testing.assert_array_equal(count, np.rint(share * whole))
  assert set(chosen[3]['inputs']) != set(chosen[4]['inputs'])


def test_each_process_has_its_rows_of_what_is_left():
  whole, first, second = (
    inputs.InMemory(NUMBERED, 10, process).holding_out(0.1)
    for process in ((0, 1), (0, 2), (1, 2))
  )
  for step in (0, 17, 40):
    parts = [half.batch(step, 5)['inputs'] for half in (first, second)]
    np.testing.assert_array_equal(
      np.concatenate(parts), whole.batch(step, 5)['inputs']
    )
  held_out = [half.held_out(5)['inputs'] for half in (first, second)]
  np.testing.assert_array_equal(*held_out)


def trainer(model='mlp', *, steps=60, batch_size=100, **given):
  return problems.trainer(
    'swad', given=given, model=model, batch_size=batch_size, steps=steps
  )


def finished(one, seed=0):
  """Returns the end of a run, and the parameters after each of its steps."""
  iterates = []
  progress = one.start(seed)
  one.run(progress, seed, lambda now: iterates.append(copy(now.state.params)))
  return progress, iterates


def assert_close(found, expected):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
    found,
    expected,
  )


def test_the_solution_is_that_of_a_loop_of_ones_own():
  settings = {'n_converge': 2, 'n_tolerance': 2, 'tolerance': 0.1}
  one = trainer(
    'cnn', validation_share=0.5, epochs_per_validation=2, **settings
  )
  held_out = one.inputs.held_out(7)
  assert len(held_out['labels']) == 498  # half of each class

  @jax.jit
  def loss_of(params, statistics):
    logits = one.task.model.apply(
      {'params': params, **statistics}, held_out['inputs'], train=False
    )
    return jnp.mean(
      optax.softmax_cross_entropy_with_integer_labels(
        logits, held_out['labels']
      )
    )

  losses, seen = [], []

  def after_step(now):
    seen.append(copy(now.state.params))
    losses.append(float(loss_of(now.state.params, now.state.statistics)))

  progress = one.start(7)
  one.run(progress, 7, after_step)
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
  # It could be told from what is trained.
  distance = optax.tree.norm(optax.tree.sub(params, progress.state.params))
  assert distance > 1e-3
  train = one.task.inputs.train()
  batches = [
    {key: x[first::10] for key, x in train.items()} for first in range(10)
  ]
  by_hand = reestimate_batch_norm(
    lambda variables, batch: one.task.model.apply(
      variables, batch['inputs'], train=True, mutable=['batch_stats']
    )[1],
    {'params': params, **progress.state.statistics},
    batches,
  )
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
    statistics['batch_stats'],
    by_hand['batch_stats'],
  )
  loss, _ = one._evaluate(params, statistics, one.task.inputs.test())
  assert progress.evaluations[-1]['test_loss'] == loss


def test_it_converges_and_ends_where_the_losses_say(monkeypatch):
  # From the second epoch on the losses are flat, up to the fifth one; the sixth
  # and the seventh are above, so that the eighth counts no more.
  losses = iter([9.0, 1.0, 1.1, 1.2, 1.0, 5.0, 5.0, 1.0])
  monkeypatch.setattr(
    swad_validation.evaluation, 'evaluate', lambda *_: (next(losses), 0.5)
  )
  one = trainer(batch_size=450, steps=16, n_tolerance=2)  # two an epoch
  monkeypatch.setattr(one, '_evaluation_row', lambda now: {'step': now.step})
  progress, iterates = finished(one)
  found = [
    (row['first_segment'], row['last_segment']) for row in progress.validations
  ]
  assert found == [(0, 0)] * 3 + [(2, 4)] + [(2, 5)] * 4
  assert bool(progress.state.memory.ended)
  params, _ = one.solution(progress.state)
  members = iterates[2:10]  # of the second epoch to the fifth one
  mean = jax.tree.map(lambda *x: np.mean(np.stack(x), axis=0), *members)
  assert_close(params, mean)


def test_what_it_trains_is_what_the_base_optimizer_does_with_as_few_examples():
  one, base = trainer(steps=12), problems.trainer('sgd', batch_size=100)
  base.inputs = base.task.inputs.holding_out(0.1)
  assert one.epoch_steps == 9
  progress, _ = finished(one)
  plain, _ = finished(base)
  assert_close(progress.state.params, plain.state.params)
  assert progress.inputs == plain.inputs
  assert plain.validations == []


def test_other_methods_train_on_all_examples():
  for name in ('sgd', 'swa'):
    one = problems.trainer(name)
    assert one.averaging is None
    assert one.inputs is one.task.inputs
    assert one.inputs.held_out(0) is None
    expected = datasets.batch_at(one.inputs.dataset.train, 5, 50, seed=3)
    found = one.batch(5, 3)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
  assert {
    name for name in registry.METHODS if build.averaging(name, {}) is not None
  } == {'swad'}


def run(config):
  text = io.StringIO()
  finished = train.run(config, Console(file=text, width=200))
  return finished, text.getvalue()


def test_a_run_goes_on_to_the_bit(tmp_path, monkeypatch):
  config = problems.train_config(
    method='swad',
    steps=300,  # which is no length beside epochs
    epochs=9,
    batch_size=240,
    set=('swad.n_converge=2', 'swad.validation_share=0.25'),
    output=tmp_path / 'whole',
  )
  assert run(config)[0]
  config = dataclasses.replace(config, epochs=None, steps=27)
  lines = (config.output / 'metrics.jsonl').read_text()
  assert lines.count('"kind": "validation"') == 9
  again = dataclasses.replace(config, output=tmp_path / 'again')
  # After the validation of an epoch, and between two of them.
  for step in (12, 20):
    interrupt_at(monkeypatch, step)
    assert not run(again)[0]
    monkeypatch.undo()
    again = dataclasses.replace(again, resume=True)
  finished, text = run(again)
  assert finished
  assert 'Resuming from the checkpoint of step 20' in text
  assert_same_end(again, config)


@pytest.mark.parametrize(
  ('setting', 'complaint'),
  [
    ('validation_share=0', 'swad: validation_share must be above 0 and at'),
    ('validation_share=0.51', 'above 0 and at most 0.5, got 0.51'),
    ('validation_share=0.0001', 'holds out none of 1000 training examples'),
    ('epochs_per_validation=0', 'epochs_per_validation must be at least 1'),
    ('epochs_per_validation=1.5', 'epochs_per_validation must be a Python int'),
    ('n_converge=0', 'swad: n_converge must be at least 1'),
    ('n_tolerance=0', 'swad: n_tolerance must be at least 1'),
    ('tolerance=-1', 'swad: tolerance must be at least 0'),
    ('validation_share=0.5', '--batch-size must be at most 502, the training'),
  ],
)
def test_what_cannot_be_done_is_said_before_anything(
  setting, complaint, tmp_path
):
  config = problems.train_config(
    method='swad',
    set=(f'swad.{setting}',),
    batch_size=600,
    output=tmp_path / 'run',
  )
  with pytest.raises(ValueError, match=complaint):
    run(config)
  assert not list(tmp_path.iterdir())
