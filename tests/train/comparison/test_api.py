"""The function `compare`, on small models and data."""

import importlib
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam.train import Comparison, compare
from optax_sam.train.loop.trainer import Trainer
from optax_sam.train.optimizers import registry
from tests.train import problems

pytestmark = pytest.mark.usefixtures('quick_eigenvalues')

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(60, 4))
Y = np.argmax(X[:, :3], axis=1)
TRAIN, TEST = (X[:40], Y[:40]), (X[40:], Y[40:])
SMALL = {
  'steps': 4,
  'batch_size': 10,
  'seeds': 1,
  'timing_rounds': 0,
  'evaluations': 1,
  'verbose': False,
}


class Net(nn.Module):
  outputs: int = 3

  @nn.compact
  def __call__(self, x, train):
    x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
    x = nn.Dropout(0.2, deterministic=not train)(nn.relu(x))
    return nn.Dense(self.outputs)(x)


def init(key, x):
  return {'w': jax.random.normal(key, (x.shape[1], 3))}


def apply(params, x):
  return x @ params['w']


PLAIN = (init, apply)


def embed(key, x):
  del x
  return jax.random.normal(key, (5, 5))


def evaluations(comparison):
  names = ('test_loss', 'test_accuracy', 'train_loss')
  return {
    run.method: [run.last(name) for name in names] for run in comparison.runs
  }


@pytest.fixture(scope='module')
def small(quick_eigenvalues):
  del quick_eigenvalues
  given = SMALL | {'seeds': 2, 'evaluations': 2}
  return compare(Net(), TRAIN, TEST, methods=('sam', 'swa'), **given)


def test_a_comparison_with_batch_norm_and_dropout(small):
  assert isinstance(small, Comparison)
  found = [(run.method, run.seed) for run in small.runs]
  methods = ('sgd', 'sam', 'swa')
  assert found == [(name, seed) for seed in (0, 1) for name in methods]
  for run in small.runs:
    last = run.evaluations[-1]
    assert last['test_accuracy'] == pytest.approx(np.mean(run.test_values))
    assert len(run.test_values) == 20
    assert {'test_loss', 'train_loss', 'train_accuracy'} <= last.keys()


def test_a_comparison_shows_its_results(small, tmp_path, monkeypatch):
  means = {
    name: np.mean(list(small.scores(name).values())) for name in small.methods
  }
  assert means[small.best()] == max(means.values())
  assert 'SWA' in small.table()
  assert small._repr_html_().count('<tr>') == 4
  path = small.report(tmp_path / 'new' / 'page.html')
  assert path.read_text().startswith('<!')
  assert small.report(tmp_path / 'all') == tmp_path / 'all' / 'report.html'
  assert problems.names(tmp_path / 'all') == {
    'report.html',
    'results.csv',
    'metrics.jsonl',
  }
  monkeypatch.setattr(
    importlib, 'import_module', lambda _: types.SimpleNamespace(read_csv=list)
  )
  assert len(small.to_dataframe()) == 7


def test_the_output_is_that_of_the_command(tmp_path, capsys):
  given = SMALL | {'verbose': True}
  compare(PLAIN, TRAIN, TEST, methods=(), output=tmp_path / 'out', **given)
  assert {'report.html', 'config.json'} <= problems.names(tmp_path / 'out')
  assert 'Training' in capsys.readouterr().out
  compare(PLAIN, TRAIN, TEST, methods=(), **SMALL)
  assert capsys.readouterr().out == ''


def test_methods_and_a_base_of_the_user_equal_those_of_the_catalog():
  names = evaluations(
    compare(
      PLAIN,
      TRAIN,
      TEST,
      methods=('sam', 'asam'),
      settings={'asam': {'rho': 0.7}},
      weight_decay=0.0,
      learning_rate=0.2,
      **SMALL,
    )
  )
  own = compare(
    PLAIN,
    TRAIN,
    TEST,
    methods={
      'sam': optax_sam.sam(0.05),
      'my asam': lambda base: optax.chain(optax_sam.asam(0.7), base),
      'nothing': optax.identity(),
    },
    base=lambda rate: optax.sgd(rate, momentum=0.9),
    learning_rate=0.2,
    **SMALL,
  )
  found = evaluations(own)
  assert found['sam'] == names['sam']
  assert found['my asam'] == names['asam']
  assert found['nothing'] == found['base'] == names['sgd']
  assert own.runs_of('my asam')[0].second_gradient_share == 1
  # The registry is as before.
  assert not registry.BASES
  assert 'nothing' not in registry.METHODS
  assert registry.METHODS['sam'].row.radius == 'rho'


def test_an_own_average_is_evaluated_as_that_of_the_catalog():
  start = {'swa': {'start': 0.5}}
  named, own = (
    evaluations(compare(PLAIN, TRAIN, TEST, methods=methods, **given, **SMALL))
    for methods, given in (
      (('swa',), {'settings': start}),
      ({'own': lambda x: optax.chain(x, optax_sam.swa(2, every=4))}, {}),
    )
  )
  assert own['own'] == named['swa'] != named['sgd']


def test_an_own_method_costs_as_much_as_that_of_the_catalog():
  costs = [
    compare(PLAIN, TRAIN, TEST, methods=methods, **SMALL)
    .runs_of(name)[0]
    .last('gradients')
    for methods, name in (
      (('momentum_sam',), 'momentum_sam'),
      ({'own': optax_sam.momentum_sam(3.0)}, 'own'),
    )
  ]
  assert costs[0] == costs[1]


def test_regression_with_a_loss_and_a_metric_of_the_user():
  def absolute(outputs, targets):
    return jnp.mean(jnp.abs(outputs - targets), axis=1)

  targets = X[:, :3]
  found = compare(
    PLAIN,
    (X[:40], targets[:40]),
    (X[40:], targets[40:]),
    loss=lambda f, y: jnp.sum((f - y) ** 2, axis=1),
    metric=absolute,
    higher_is_better=False,
    methods=('sam', 'swad'),
    **SMALL | {'label_smoothing': 0.0},
  )
  assert found.metric.name == 'absolute'
  last = found.runs[0].evaluations[-1]
  assert last['test_absolute'] == pytest.approx(
    np.mean(found.runs[0].test_values)
  )
  assert last['test_loss'] != last['test_absolute']
  scores = {name: found.scores(name)[0] for name in found.methods}
  assert scores[found.best()] == min(scores.values())


def test_next_token_of_large_data_is_evaluated_in_parts(monkeypatch):
  monkeypatch.setattr('optax_sam.train.loop.evaluation._PART', 7)
  tokens = RANDOM.integers(5, size=(30, 6))
  found = compare(
    (embed, lambda params, x: params[x]),
    tokens,
    tokens[:16],
    loss='next_token',
    methods=('sam',),
    **SMALL,
  )
  run = found.runs[0]
  assert len(run.test_values) == 16
  assert run.last('test_token_accuracy') == pytest.approx(
    np.mean(run.test_values)
  )


def test_search_and_budget_are_those_of_the_command():
  given = {'tune': 'learning_rate', 'trials': 2, 'budget': 'gradients'}
  found = compare(
    PLAIN, TRAIN, TEST, validation=TEST, methods=('sam',), **SMALL, **given
  )
  assert {trial.method for trial in found.trials} == {'sgd', 'sam'}
  sgd, sam = found.runs
  assert sam.steps == 4 < sgd.steps
  # The fraction that is held out leaves too few examples.
  with pytest.raises(ValueError, match=r'^batch_size must be at most 7'):
    compare(PLAIN, TRAIN, TEST, validation=0.8, **SMALL, **given)


def test_the_same_call_continues_from_its_output(tmp_path, monkeypatch):
  given = SMALL | {'output': tmp_path / 'out', 'methods': ('sam',)}
  first = compare(PLAIN, TRAIN, TEST, **given)
  with monkeypatch.context() as patch:
    patch.setattr(Trainer, 'run', None)
    again = compare(PLAIN, TRAIN, TEST, **given)
  assert evaluations(again) == evaluations(first)
  with pytest.raises(ValueError, match='other settings: steps was 4 and is n'):
    compare(PLAIN, TRAIN, TEST, **given | {'steps': 5})


def test_an_output_of_other_own_functions_is_refused(tmp_path):
  def run(rho, name='out', power=2.0, decay=0.0):
    return compare(
      PLAIN,
      TRAIN,
      TEST,
      methods={'mine': optax_sam.sam(rho=rho)},
      base=lambda rate: optax.chain(
        optax.add_decayed_weights(decay), optax.sgd(rate)
      ),
      learning_rate=0.1,
      loss=lambda outputs, labels: jnp.abs(outputs[:, 0] - labels) ** power,
      output=tmp_path / name,
      **SMALL,
    )

  first = run(0.1)
  assert evaluations(run(0.1)) == evaluations(first)
  for changes in ({'rho': 0.2}, {'power': 3.0}, {'decay': 0.5}):
    with pytest.raises(ValueError, match=r'own functions: .* choose another'):
      run(**({'rho': 0.1} | changes))


def test_scalars_of_numpy_and_jax_are_numbers():
  given = SMALL | {'methods': ('sam',)}
  plain = compare(
    PLAIN,
    TRAIN,
    TEST,
    settings={'sam': {'rho': 0.25}},
    learning_rate=0.5,
    **given,
  )
  scalars = compare(
    PLAIN,
    TRAIN,
    TEST,
    settings={'sam': {'rho': jnp.float32(0.25)}},
    learning_rate=np.float64(0.5),
    **given | {'steps': np.int64(given['steps'])},
  )
  assert evaluations(scalars) == evaluations(plain)


OTHER = {
  'model': Net(),
  'train': TRAIN,
  'test': TEST,
  'methods': ('sam',),
  **SMALL,
}


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'model': Net}, r'write Net\(\)'),
    ({'model': Net(2)}, 'train has the label 2, and the model has 2 outputs'),
    ({'model': (init, lambda p, x: (x @ p['w'])[:, 0])}, 'model returns shape'),
    (
      {'model': (init, lambda p, x: x @ p['w'].T)},
      'model .* fails on inputs of',
    ),
    (
      {'model': (lambda *_: {'n': jnp.int32(1)}, lambda _, x: x)},
      'needs parameters of floats, not int32',
    ),
    ({'model': (lambda *_: {}, lambda _, x: x)}, 'floats, not none'),
    (
      {'train': (X[:40], Y[:39])},
      'train: inputs has 40 examples and targets has 39',
    ),
    (
      {'test': (X[40:, :2], Y[40:])},
      'test: inputs has examples of shape',
    ),
    ({'test': (X[40:], Y[40:] + 1)}, 'test has the label 3'),
    ({'train': (X[:40] * np.nan, Y[:40])}, 'NaN or infinity in 40 of 40'),
    ({'batch_size': 41}, 'batch_size must be at most 40'),
    ({'batch_size': 0}, '^batch_size must be at least 1, not 0'),
    ({'steps': -1}, '^steps must be at least 1, not -1'),
    ({'learning_rate': 0.0}, '^learning_rate must be above 0'),
    ({'loss': 'mse'}, "loss 'mse' is unknown"),
    ({'methods': 'sam'}, r"write methods=\('sam',\)"),
    ({'methods': ('sma',)}, "'sma'"),
    ({'methods': {'mine': 3}}, "'mine' must be a gradient transformation"),
    ({'methods': {'mine': optax_sam.sam}}, 'got a gradient transformation'),
    ({'methods': {'mine': None}}, 'gradient transformation, .* not NoneType'),
    ({'methods': {'sgd': optax.identity()}}, "'sgd' is the base optimizer;"),
    ({'methods': {1: optax.identity()}}, 'the name 1 must begin'),
    ({'methods': {'a/b': optax.identity()}}, "the name 'a/b' must begin"),
    ({'methods': {'.a': optax.identity()}}, "the name '.a' must begin"),
    ({'methods': {'a' * 250: optax.identity()}}, 'at most 40 letters'),
    ({'settings': {'sam': {'row': 1}}}, 'row'),
    (
      {'methods': {'mine': lambda b: (b,)}},
      'returns an optimizer .* not tuple',
    ),
    (
      {'methods': ('saf',), 'loss': lambda f, y: f[:, 0] * y},
      'saf needs loss=',
    ),
    ({'base': 3}, 'base must be a name such as sgd, or a function'),
    ({'base': optax.sgd}, 'learning_rate must be given if base is a f'),
    ({'warmth': 0.1}, "argument 'warmth' is unknown; did you mean warmup"),
    ({'label_noise': 0.1}, "argument 'label_noise' is unknown"),
    ({'base': 'sdg'}, "^base 'sdg' is unknown; did you mean sgd"),
  ],
)
def test_bad_input_is_refused_before_training(changes, message, monkeypatch):
  monkeypatch.setattr(Trainer, 'run', None)
  with pytest.raises(ValueError, match=message) as caught:
    compare(**(OTHER | changes))
  assert '\n' not in str(caught.value)
