import collections
import dataclasses
import inspect
import io
import math
import re
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import optax_sam
from optax_sam.train.commands import compare, progress
from optax_sam.train.comparison import plan, store, tuning
from optax_sam.train.data import datasets, inputs
from optax_sam.train.loop import evaluation, objectives
from optax_sam.train.loop.trainer import Trainer
from optax_sam.train.optimizers import build
from optax_sam.train.optimizers.registry import METHODS
from optax_sam.train.reports.results import Trial
from tests.train import problems
from tests.train.comparison.test_runs import assert_has, assert_same
from tests.train.problems import assert_close, finished


@pytest.fixture
def known_best(monkeypatch):
  """Replaces training: the metric is a function of method and settings."""

  def install(best, is_finite=lambda *_: True):
    started = []

    def train(self, values):
      started.append(self.name)
      distance = sum(
        abs(math.log2(value / best[self.name][key]))
        for key, value in values.items()
      )
      fine = is_finite(self.name, values)
      metric = 1 - distance / 100 if fine else math.nan
      return Trial(self.name, values, tuning.SEED, 1.0, metric)

    monkeypatch.setattr(tuning.Trials, '_train', train)
    return started

  return install


def tune(config, done=()):
  text = io.StringIO()
  task = problems.small_task('mlp', config.batch_size)
  settings = plan.method_settings(config)
  with progress.Reporter(Console(file=text, width=300)) as reporter:
    stored = store.Store()
    stored.trials += done
    chosen = tuning.tune(config, task, settings, reporter, stored)
  return chosen, text.getvalue(), stored.trials


def test_radii_are_found_around_the_learning_rate_of_the_base(known_best):
  started = known_best(
    {
      'sgd': {'learning_rate': 0.4},
      'sam': {'rho': 0.8},  # four doublings of its default, 0.05
      'asam': {'rho': 0.125},  # two halvings of 0.5
      'swa': {'learning_rate': 0.2},
    }
  )
  config = problems.compare_config(
    methods=('sam', 'asam', 'swa'), tune=('radius',)
  )
  chosen, text, _ = tune(config)
  assert chosen['sgd'] == {'learning_rate': 0.4}
  assert chosen['sam']['rho'] == 0.8
  assert chosen['asam']['rho'] == 0.125
  # A method without a radius tunes its learning rate.
  assert chosen['swa']['learning_rate'] == 0.2
  assert chosen['sam']['learning_rate'] == 0.4
  # As many trials for each method as for the base.
  assert collections.Counter(started) == dict.fromkeys(chosen, 8)
  line = re.search('  sam: .*', text).group()
  assert 'rho=0.8 (tried 0.025 to 1.6), validation accuracy 100.00 %' in line


@pytest.mark.parametrize(
  ('name', 'tuned', 'expected'),
  [
    ('sam', (), {'rho': 0.05, 'learning_rate': 0.1}),
    ('sam', ('radius',), {'rho': 0.05}),
    ('sgd', (), {'learning_rate': 0.1}),
    ('sgd', ('sam.rho',), {'learning_rate': 0.1}),
    ('swa', ('radius',), {'learning_rate': 0.1}),
    ('lpf_sgd', ('radius',), {'gamma': 0.0005}),
    ('entropy_sgd', ('learning_rate',), {'learning_rate': 1.0}),
    ('sam', ('learning_rate',), {'learning_rate': 0.1}),
    ('sam', ('radius', 'learning_rate'), {'rho': 0.05, 'learning_rate': 0.1}),
    ('look_sam', ('look_sam.period',), {'period': 5}),
    # A method without the named setting tunes its radius.
    ('asam', ('look_sam.period',), {'rho': 0.5}),
  ],
)
def test_every_method_has_a_setting_to_tune(name, tuned, expected):
  config = problems.compare_config(tune=tuned)
  own = build.complete_settings(name, {}, None)
  assert tuning.start(config, name, own) == expected


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'trials': 1}, '--trials must be at least 2, not 1'),
    ({'trials': 10**8}, '--trials must be at most 4096, not 100000000'),
    ({'validation': 1.0}, '--validation must be below 1, not 1.0'),
    ({'validation': 0.0}, '--validation must be above 0, not 0.0'),
    ({'tune': ('rho',)}, "--tune 'rho' must be one of radius, learning_rate"),
    ({'tune': ('asam.rho',)}, "'asam.rho' must be one of .*sam.rho"),
    ({'tune': ('sam.tau',)}, "'sam.tau' must be one of .*sam.rho"),
    (
      {'tune': ('swa.start',), 'set': ('swa.start=0',), 'methods': ('swa',)},
      r'swa.start is 0, but .* give a start above 0',
    ),
  ],
)
def test_invalid_flags_are_refused(changes, message):
  config = problems.compare_config(**({'tune': ()} | changes))
  with pytest.raises(ValueError, match=message):
    compare.run(config, Console(quiet=True))


def test_a_radius_that_is_written_as_an_integer_can_become_smaller(known_best):
  known_best({'sgd': {'learning_rate': 0.1}, 'sam': {'rho': 0.125}})
  config = problems.compare_config(
    methods=('sam',), tune=('radius',), set=('sam.rho=1',)
  )
  chosen, _, _ = tune(config)
  assert chosen['sam']['rho'] == 0.125


def test_integers_are_tried_once_and_only_if_the_method_accepts_them(
  known_best,
):
  known_best(
    {'sgd': {'learning_rate': 0.1}, 'look_sam': {'period': 20}},
    is_finite=lambda _, values: values.get('period', 1) < 30,
  )
  config = problems.compare_config(
    methods=('look_sam',), tune=('look_sam.period',)
  )
  chosen, _, made = tune(config)
  assert chosen['look_sam']['period'] == 20
  short = [
    trial.settings['period'] for trial in made if trial.method == 'look_sam'
  ]
  assert len(short) == len(set(short)) == 8
  assert all(isinstance(value, int) for value in short)


def test_diverged_trials_are_named(known_best):
  known_best(
    {'sgd': {'learning_rate': 0.1}, 'sam': {'rho': 0.1}},
    is_finite=lambda name, _: name != 'sam',
  )
  chosen, text, _ = tune(problems.compare_config(tune=('radius',), trials=4))
  assert 'sam: all trials diverged' in text
  assert 0 < chosen['sam']['rho'] < 0.05


def test_the_sign_of_a_metric_is_shown():
  objective = objectives.build(
    metric=lambda _, labels: labels - 3.0, higher_is_better=True
  )
  task = dataclasses.replace(
    problems.small_task('mlp', 100), objective=objective
  )
  config = problems.compare_config(tune=('radius',))
  trials = tuning.Trials(
    config, task, 'sam', {'rho': 0.1}, store.Store(), threading.Event()
  )
  line = trials.summary((0.0,), (-0.25, -1.0), [(0.0,)])
  assert line.endswith('validation metric -0.25')


class _NoTest(inputs.InMemory):
  def test(self):
    raise NotImplementedError


def test_a_search_reads_no_test_example_and_trains_on_no_validation_example():
  config = problems.compare_config(
    tune=(), trials=2, steps=8, validation=0.3, methods=('sam',)
  )
  task = problems.small_task('mlp', 50)
  data = task.inputs.dataset
  # The labels say where an example is from.
  test = {**data.test, 'labels': np.full_like(data.test['labels'], -1)}
  whole = dataclasses.replace(data, test=test)
  task = dataclasses.replace(task, inputs=_NoTest(whole, 50))
  held = []
  original = evaluation.evaluate

  def evaluate(task, params, statistics, batches, placement):
    held.extend(batches)
    return original(task, params, statistics, batches, placement)

  with (
    progress.Reporter(Console(quiet=True)) as reporter,
    pytest.MonkeyPatch.context() as patch,
  ):
    patch.setattr(evaluation, 'evaluate', evaluate)
    settings = plan.method_settings(config)
    stored = store.Store()
    *_, left = plan.make(config, task, settings, reporter, stored)
  assert len(stored.trials) == 2 * 2
  assert left.inputs.dataset.test is test
  validation = {row.tobytes() for row in held[0]['inputs']}
  training = {row.tobytes() for row in left.inputs.train()['inputs']}
  assert all((batch['labels'] >= 0).all() for batch in held)
  assert not validation & training
  everything = {row.tobytes() for row in data.train['inputs']}
  assert validation | training == everything
  # The same fraction of every class.
  _, counts = np.unique(held[0]['labels'], return_counts=True)
  _, all_counts = np.unique(data.train['labels'], return_counts=True)
  np.testing.assert_allclose(counts, 0.3 * all_counts, atol=0.5)


def test_validation_examples_of_the_dataset_are_used_instead_of_a_split():
  config = problems.compare_config(tune=('radius',))
  task = problems.small_task('mlp', 50)
  data = task.inputs.dataset
  own = {name: values[:70] for name, values in data.test.items()}
  whole = dataclasses.replace(data, validation=own)
  task = dataclasses.replace(task, inputs=inputs.InMemory(whole, 50))
  left, searched = tuning.split(config, task)
  assert left.inputs.train() is data.train
  assert searched.inputs.test() == [own]


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'validation': 1e-4}, '--validation 0.0001 holds out no example'),
    ({'batch_size': 900}, '--batch-size must be at most 801.* leaves, not 900'),
  ],
)
def test_too_few_examples_are_refused(changes, message):
  config = problems.compare_config(**({'tune': ()} | changes))
  task = problems.small_task('mlp', config.batch_size)
  with pytest.raises(ValueError, match=message):
    tuning.split(config, task)


def test_targets_that_are_no_classes_are_split_at_random():
  train = {
    'inputs': np.arange(10.0)[:, None],
    'labels': np.linspace(0, 1, 10, dtype=np.float32)[:, None],
  }
  left, held_out = datasets.hold_out(train, 0.3, seed=0)
  assert len(held_out['labels']) == 3
  both = np.concatenate([left['inputs'], held_out['inputs']])
  assert sorted(both[:, 0]) == list(range(10))


def test_finished_trials_are_not_repeated(known_best):
  best = {'sgd': {'learning_rate': 0.2}, 'sam': {'rho': 0.1}}
  started = known_best(best)
  config = problems.compare_config(tune=('radius',))
  chosen, text, made = tune(config)
  assert len(started) == len(made) == 2 * 8
  # After an interruption the rest is trained, with the same result.
  assert tune(config, made[:9]) == (chosen, text, made)
  assert len(started) == 16 + 7


@pytest.mark.usefixtures('quick_eigenvalues')
def test_the_same_command_continues_an_interrupted_search(
  tmp_path, monkeypatch
):
  config = problems.compare_config(
    tune=(), trials=2, budget='gradients', output=tmp_path / 'out'
  )
  original, started = Trainer.run, []

  def train(self, *given):
    started.append(self.name)
    if len(started) == 3:
      raise KeyboardInterrupt
    original(self, *given)

  monkeypatch.setattr(tuning.TracedTrainer, 'run', train)
  console = Console(quiet=True)
  with pytest.raises(SystemExit):
    compare.run(config, console)
  done = len(list((config.output / 'trials').iterdir()))
  assert done == 2
  found = compare.run(config, console)
  assert len(started) == 3 + 2
  assert not found.interrupted
  assert len(found.trials) == 4
  again = compare.run(
    dataclasses.replace(config, output=tmp_path / 'again'), console
  )
  assert found.trials == again.trials
  assert_same(found, again)
  # A method that is added is searched; the others are not searched again.
  started.clear()
  added = compare.run(
    dataclasses.replace(config, add_methods=('asam',)), console
  )
  assert set(started) == {'asam'}
  assert_has(added, found)
  assert 'rho' in added.runs_of('asam')[0].settings


def test_an_error_ends_the_other_searches(monkeypatch):
  steps = []
  original = Trainer.run

  def run(self, current, seed, after_step):
    if self.name == 'asam':
      raise KeyboardInterrupt
    steps.append(self.name)
    original(self, current, seed, after_step)

  monkeypatch.setattr(Trainer, 'run', run)
  config = problems.compare_config(methods=('asam', 'sam'), tune=(), trials=4)
  with pytest.raises(KeyboardInterrupt):
    tune(config)
  assert steps.count('sgd') == 4
  assert steps.count('sam') < 7


def test_settings_in_the_state_train_as_those_of_the_method():
  config = problems.compare_config()
  task = problems.small_task('mlp', 50)
  own = build.complete_settings('sam', {}, None)
  values = {'rho': 0.3, 'learning_rate': 0.05}
  one = tuning.TracedTrainer(config, task, 'sam', own)
  ends, steps = [], []
  for traced in ({'rho': 0.1, 'learning_rate': 0.1}, values):
    one.traced = traced
    ends.append(finished(one).state.params)
    steps.append(one.compile())
  assert steps[0] is steps[1]
  expected = finished(Trainer(config, task, 'sam', own | values)).state.params
  assert_close(ends[1], expected, rtol=1e-4, atol=1e-5)
  assert not jnp.array_equal(
    ends[0]['Dense_0']['kernel'], ends[1]['Dense_0']['kernel']
  )


@pytest.mark.parametrize(
  ('name', 'given', 'setting', 'values'),
  [
    ('saf', {'lag': 1, 'start_epoch': 1}, 'weight', (0.1, 30.0)),
    ('flat_noise', {}, 'sigma', (0.01, 3.0)),
    ('bi_lora', {}, 'rho', (0.01, 30.0)),
  ],
)
def test_tuned_settings_of_losses_noise_and_optimizers_take_effect(
  name, given, setting, values
):
  config = problems.compare_config(
    batch_size=250, adapter_rank=2, tune=(f'{name}.{setting}',)
  )
  own = build.complete_settings(name, given, None)
  trials = tuning.Trials(
    config,
    problems.small_task('mlp', 250),
    name,
    own,
    store.Store(),
    threading.Event(),
  )
  found = [trials._train({setting: value}) for value in values]
  assert found[0].validation_loss != found[1].validation_loss


@pytest.mark.parametrize('name', METHODS)
def test_all_settings_but_static_ones_may_be_traced(name):
  task = problems.small_task('cnn' if name == 'sam_on' else 'mlp', 50)
  rank = 2 if METHODS[name].needs_adapters else None
  config = problems.compare_config(adapter_rank=rank)
  own = build.complete_settings(name, {}, None)
  start = tuning.start(
    dataclasses.replace(config, tune=('radius', 'learning_rate')), name, own
  )
  trainer = tuning.TracedTrainer(config, task, name, own)
  parameters = inspect.signature(METHODS[name].factory).parameters.values()
  defaults = {x.name: x.default for x in parameters}
  trainer.traced = tuning.traced_settings(name, defaults)
  trainer.traced |= {key: float(value) for key, value in start.items()}
  task, batch = trainer.task, dict(task.inputs.sample())
  tx = trainer.optimizer(seed=0)

  def update(key):
    params, statistics = task.init(key)
    state = tx.init(params)
    losses = lambda p, b: task.per_example_losses(p, statistics, b)
    value_fn = lambda p: jnp.mean(losses(p, batch))
    given = {} if trainer.averaging else {'value_fn': value_fn}
    found = tx.update(
      jax.grad(value_fn)(params),
      state,
      params,
      per_example_value_fn=losses,
      batch=batch,
      losses=losses(params, batch),
      **given,
    )
    return found, state

  (updates, after), before = jax.eval_shape(update, jax.random.key(0))
  assert jax.tree.structure(after) == jax.tree.structure(before)
  assert all(
    one.dtype == other.dtype
    for one, other in zip(
      jax.tree.leaves(after), jax.tree.leaves(before), strict=True
    )
  )
  assert jax.tree.leaves(updates)
  if build.method(name).reports:
    shapes = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), after)
    assert 'second_gradients' in optax_sam.metrics(shapes)
