import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam.train.comparison import plan
from optax_sam.train.optimizers import build, registry
from optax_sam.train.optimizers.base_optimizer import base_optimizer
from tests import traces
from tests.train import problems

CONFIG = problems.compare_config(steps=10, adapter_rank=2)
PARAMS = {'norm': jnp.ones(3)}
BATCH = jnp.ones((4, 3))


@pytest.mark.parametrize(
  'name',
  # It needs two pairs of adapters, see tests/train/models/test_adapters.py.
  [x for x, row in registry.METHODS.items() if not row.has_second_pair],
)
def test_every_row_builds_an_optimizer(name):
  parameters = inspect.signature(registry.METHODS[name].factory).parameters
  settings = build.complete_settings(name, {}, None)
  assert set(settings) == set(build.settable(name))
  for key, value in settings.items():
    assert parameters[key].default in {inspect.Parameter.empty, value}
  tx = optax.with_extra_args_support(
    build.optimizer(name, settings, CONFIG, seed=0, batch_like=BATCH)
  )
  state = tx.init(PARAMS)
  if build.method(name).reports:
    assert optax_sam.metrics(state)['second_gradients'] == 0

  def update(params, state, batch):
    def losses(params, batch):
      return batch @ params['norm']

    return tx.update(
      params,
      state,
      params,
      value_fn=lambda p: jnp.mean(losses(p, batch)),
      per_example_value_fn=losses,
      batch=batch,
    )

  # Gradients are conditional if steps are skipped, and if a mask or a direction
  # is refreshed periodically by other gradients.
  program = jax.make_jaxpr(update)(PARAMS, state, BATCH)
  refreshes = name in {'eigen_sam', 'sparse_sam_fisher'}
  assert (
    traces.conditional_gradients(program.jaxpr)
    == build.method(name).skips + refreshes
  )


def test_a_setting_overrides_rho_which_overrides_the_default():
  assert build.complete_settings('asam', {}, None)['rho'] == 0.5
  assert build.complete_settings('asam', {}, 0.2)['rho'] == 0.2
  assert build.complete_settings('asam', {'rho': 1}, 0.2)['rho'] == 1
  # A method without a radius
  assert set(build.complete_settings('ordered_sgd', {}, 0.2)) == {'k'}


@pytest.fixture
def replaced(monkeypatch):
  """Returns a function that changes the row of a method."""

  def replaced(name, **changes):
    row = dataclasses.replace(registry.METHODS[name], **changes)
    monkeypatch.setitem(registry.METHODS, name, row)

  return replaced


@pytest.mark.parametrize(
  ('name', 'given', 'highest'),
  [('wsam_decoupled', {}, 0.1), ('b_sam', {'learning_rate': 0.7}, 0.7)],
)
def test_learning_rate_is_the_schedule_of_base_or_replacing_method(
  name, given, highest, replaced
):
  found = []

  def factory(*, learning_rate, base=None):
    del base
    found.extend(float(learning_rate(step)) for step in (0, 1, 10))
    return optax.identity()

  settable = build.settable(name)
  assert ('learning_rate' in settable) == ('learning_rate' in given)
  assert not {'base', 'batch_like', 'num_data'} & set(settable)
  replaced(name, factory=factory)
  build.optimizer(name, given, CONFIG, seed=0)
  assert found == pytest.approx([0.0, highest, 0.0])


def test_schedules_account_for_several_base_steps_per_step():
  config = problems.compare_config(steps=8, warmup=0.5, weight_decay=0.0)
  given = {'steps': 3, 'alpha': 1.0}
  settings = build.complete_settings('lookbehind', given, 0.0)
  tx = build.optimizer('lookbehind', settings, config, seed=0)
  state, sizes = tx.init(PARAMS), []
  update = jax.jit(functools.partial(tx.update, grad_fn=lambda params: params))
  for _ in range(8):
    updates, state = update(PARAMS, state, PARAMS)
    sizes.append(float(optax.tree.norm(updates)))
  assert sizes[0] == 0
  assert all(size > 0 for size in sizes[1:])


@pytest.mark.parametrize(
  ('place', 'expected'),
  [('chain', -0.2), ('after', 0.9), ('wraps', 1.0), ('replaces', 1.0)],
)
def test_a_method_is_placed_as_its_row_says(place, expected, replaced):
  """The method adds 1; the base multiplies by -0.1."""
  add = optax.stateless(lambda g, _: jax.tree.map(lambda x: x + 1, g))
  one = optax.stateless(lambda g, _: jax.tree.map(jnp.ones_like, g))

  def around(base):
    assert base is not None
    return one

  factories = {'wraps': around, 'replaces': lambda: one}
  factory = factories.get(place, lambda: add)
  row = dataclasses.replace(registry.METHODS['sam'].row, place=place)
  replaced('sam', factory=factory, row=row)
  config = problems.compare_config(weight_decay=0.0, warmup=0.0)
  built = build.optimizer('sam', {}, config, seed=0)
  updates, _ = built.update(PARAMS, built.init(PARAMS), PARAMS)
  assert updates['norm'].tolist() == pytest.approx([expected] * 3)


@pytest.mark.parametrize(
  ('text', 'named'),
  [
    ('sam.rho', 'NAME.SETTING=VALUE'),
    ('asam.rho=1', "'asam' is not a method of this run; .* sam, ae_sam, base"),
    ('sgd.rho=1', "'sgd' is not a method of this run"),
    (
      'ae_sam.lamda=1',
      'did you mean lambda_2 or lambda_1[?] choose one of rho',
    ),
    ('ae_sam.decay=slow', "must be a number, not 'slow'"),
    ('ae_sam.decay=True', "must be a number, not 'True'"),
  ],
)
def test_assignments_are_parsed_or_refused_with_what_is_allowed(text, named):
  good = ['AE-SAM.lambda_2=2', 'sam.ascent_steps=2', 'base.momentum=0.5']
  parsed = build.parse_settings(good, ['sam', 'ae_sam'])
  assert parsed == {'ae_sam': {'lambda_2': 2}, 'sam': {'ascent_steps': 2}}
  with pytest.raises(ValueError, match=named):
    build.parse_settings([text], ['sgd', 'sam', 'ae_sam'])


@pytest.mark.parametrize(
  ('name', 'given', 'message'),
  [
    ('friendly_sam', {'decay': 2.0}, 'decay'),
    ('saf', {'lag': 0}, 'lag must be at least 1'),
    ('swa', {'start': 1.1}, 'start must be'),
    ('swad', {'tolerance': -1}, 'tolerance must be at least 0'),
    ('swad', {'validation_share': 0.51}, 'at most 0.5, got 0.51'),
    ('swad', {'epochs_per_validation': 0}, 'must be at least 1'),
  ],
)
def test_a_value_out_of_range_raises_with_the_method(name, given, message):
  with pytest.raises(ValueError, match=f'{name}: .*{message}'):
    build.optimizer(name, given, CONFIG, seed=0)


def test_a_method_may_have_a_learning_rate_of_its_own():
  config = problems.compare_config(
    methods=('sam', 'unnormalized_sam'),
    set=('sam.learning_rate=0.5', 'sam.rho=0.3'),
    learning_rate=0.1,
    warmup=0.0,
    weight_decay=0.0,
  )
  updates = {}
  for name, own in plan.method_settings(config).items():
    tx = optax.with_extra_args_support(
      build.optimizer(name, own, config, seed=0)
    )
    grads, state = {'w': jnp.asarray(1.0)}, tx.init({'w': jnp.zeros(())})
    found, _ = tx.update(
      grads, state, {'w': jnp.zeros(())}, value_fn=lambda p: p['w']
    )
    updates[name] = float(found['w'])
  expected = {'sgd': -0.1, 'sam': -0.5, 'unnormalized_sam': -0.1}
  assert updates == pytest.approx(expected)


@pytest.mark.parametrize('name', registry.METHODS)
def test_values_that_no_array_can_have_are_refused_in_one_line(name):
  defaults = build.complete_settings(name, {}, None)
  for setting in {*build.settable(name), 'learning_rate'}:
    default = defaults.get(setting, 0.1)
    wrong = ['1e400', '-1e400', '1e39', '9' * 150, "'x'", '-' * 150 + '1']
    if setting == registry.METHODS[name].row.radius:
      wrong += ['0', '1e-50', '-1']  # as with --rho
    if setting == 'learning_rate':
      wrong += ['0', '-1']
    if isinstance(default, int) and not isinstance(default, bool):
      wrong += [str(2**31), '1e19']
    for value in wrong:
      config = problems.compare_config(
        methods=(name,), set=(f'{name}.{setting}={value}',)
      )
      with pytest.raises(ValueError, match=setting) as error:
        plan.method_settings(config)
      assert '\n' not in str(error.value)


@pytest.mark.parametrize('base', ['sgd', 'adamw'])
def test_gradients_of_the_base_optimizer_are_clipped(base):
  grads = {'bias': jnp.asarray([3.0, 4.0])}
  params = {'bias': jnp.zeros(2)}
  updates = []
  for norm, given in ((1.0, grads), (None, {'bias': grads['bias'] / 5})):
    config = problems.train_config(clip_norm=norm, base=base, warmup=0.0)
    tx = base_optimizer(config)
    updates.append(tx.update(given, tx.init(params), params)[0]['bias'])
  np.testing.assert_allclose(*updates, rtol=1e-6)


@pytest.mark.parametrize('base', ['sgd', 'adamw'])
def test_weight_decay_excludes_biases(base):
  params = {'kernel': jnp.ones((2, 2)), 'bias': jnp.ones(2)}
  tx = base_optimizer(problems.compare_config(base=base, weight_decay=1.0))
  state = tx.init(params)
  zeros = jax.tree.map(jnp.zeros_like, params)
  for _ in range(3):
    updates, state = tx.update(zeros, state, params)
  assert jnp.all(updates['kernel'] < 0)
  assert jnp.all(updates['bias'] == 0)
