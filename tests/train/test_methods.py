import dataclasses
import inspect

import jax
import jax.numpy as jnp
import optax
import pytest

import optax_sam
from optax_sam.train.optimizers import build, registry
from optax_sam.train.optimizers.base_optimizer import base_optimizer
from tests.train import problems

STRICT = False  # the schedule of Optax promotes

CONFIG = problems.compare_config(steps=10)
PARAMS = {'norm': jnp.ones(3)}
BATCH = jnp.ones((4, 3))


@pytest.mark.parametrize('name', registry.METHODS)
def test_every_row_builds_an_optimizer(name):
  settings = build.complete_settings(name, {}, None)
  built = build.optimizer(name, settings, CONFIG, seed=0, batch_like=BATCH)
  state = built.init(PARAMS)
  if build.reports(name):
    assert optax_sam.metrics(state)['second_gradients'] == 0


@pytest.mark.parametrize('name', registry.METHODS)
def test_settings_are_those_of_the_signature(name):
  parameters = inspect.signature(registry.METHODS[name].factory).parameters
  settings = build.complete_settings(name, {}, None)
  assert set(settings) == set(build.settable(name))
  for key, value in settings.items():
    default = parameters[key].default
    assert default in {inspect.Parameter.empty, value}


def test_any_other_name_is_the_base_optimizer_alone():
  built = build.optimizer('sgd', {}, CONFIG, seed=0)
  state = built.init(PARAMS)
  assert jax.tree.structure(state[1:]) == jax.tree.structure(
    (base_optimizer(CONFIG).init(PARAMS),)
  )
  with pytest.raises(ValueError, match='method'):
    optax_sam.metrics(state)


def test_an_explicit_setting_beats_rho_which_beats_the_default():
  assert build.complete_settings('asam', {}, None)['rho'] == 0.5
  assert build.complete_settings('asam', {}, 0.2)['rho'] == 0.2
  assert build.complete_settings('asam', {'rho': 1}, 0.2)['rho'] == 1


def test_a_method_that_perturbs_nothing_is_offered_no_radius():
  assert set(build.complete_settings('ordered_sgd', {}, 0.2)) == {'k'}
  with pytest.raises(ValueError, match=r"no setting 'rho'; choose among k$"):
    build.parse_settings(['ordered_sgd.rho=1'], ['ordered_sgd'])


def rates(name, given):
  """Returns with which learning rate a method was built, at some steps."""
  found = []

  def factory(*, learning_rate, base=None):
    del base
    found.extend(float(learning_rate(step)) for step in (0, 1, 10))
    return optax.identity()

  row = dataclasses.replace(registry.METHODS[name], factory=factory)
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(registry.METHODS, name, row)
    build.optimizer(name, given, CONFIG, seed=0)
  return found


def test_a_method_around_the_base_has_its_learning_rate():
  assert rates('wsam_decoupled', {}) == pytest.approx([0.0, 0.1, 0.0])
  assert 'learning_rate' not in build.settable('wsam_decoupled')
  assert not {'base', 'batch_like'} & set(build.settable('sampa'))


@pytest.mark.parametrize('steps', [1, 3])
def test_schedules_of_a_base_that_steps_more_often_last_as_long(steps):
  config = problems.compare_config(steps=8, warmup=0.5, weight_decay=0.0)
  settings = build.complete_settings('lookbehind', {'steps': steps}, 0.0)
  settings |= {'alpha': 1.0}
  built = build.optimizer('lookbehind', settings, config, seed=0)
  state, sizes = built.init(PARAMS), []
  update = jax.jit(
    lambda state: built.update(
      PARAMS, state, PARAMS, grad_fn=lambda params: params
    )
  )
  for _ in range(8):
    updates, state = update(state)
    sizes.append(float(optax.tree.norm(updates)))
  assert sizes[0] == 0
  assert all(size > 0 for size in sizes[1:])


def test_a_method_instead_of_the_base_has_its_own_learning_rate():
  found = rates('b_sam', {'learning_rate': 0.7})
  assert found == pytest.approx([0.0, 0.7, 0.0])
  assert build.complete_settings('b_sam', {}, None)['learning_rate'] == 0.5
  assert 'num_data' not in build.settable('b_sam')


@pytest.mark.parametrize(
  ('place', 'expected'),
  [('chain', -0.2), ('after', 0.9), ('wraps', 1.0), ('replaces', 1.0)],
)
def test_a_method_stands_where_its_row_says(place, expected):
  """It adds 1; the base multiplies by -0.1."""
  add = optax.stateless(lambda g, _: jax.tree.map(lambda x: x + 1, g))

  def whole(base=None):
    assert (base is None) == (place == 'replaces')
    return optax.stateless(_ones)

  factory = {
    'wraps': lambda base: whole(base),
    'replaces': lambda: whole(),
  }.get(place, lambda: add)
  sam = registry.METHODS['sam']
  row = dataclasses.replace(
    sam, factory=factory, row=dataclasses.replace(sam.row, place=place)
  )
  config = problems.compare_config(weight_decay=0.0, warmup=0.0)
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(registry.METHODS, 'sam', row)
    built = build.optimizer('sam', {}, config, seed=0)
  updates, _ = built.update(PARAMS, built.init(PARAMS), PARAMS)
  assert updates['norm'].tolist() == pytest.approx([expected] * 3)


def _ones(gradient, params):
  del params
  return jax.tree.map(jnp.ones_like, gradient)


def test_sam_on_perturbs_normalization_layers_alone():
  assert build.complete_settings('sam_on', {}, None)['rho'] == 0.5
  assert build.complete_settings('sam_on', {}, 0.1)['rho'] == 0.1
  built = build.optimizer('sam_on', {'rho': 0.5}, CONFIG, seed=0)
  with pytest.raises(ValueError, match='no normalization layer'):
    built.init({'dense': jnp.ones(3)})


def test_sam_in_several_steps_is_a_setting():
  parsed = build.parse_settings(['sam.ascent_steps=2'], ['sam'])
  assert parsed == {'sam': {'ascent_steps': 2}}


def test_assignments_are_parsed_with_their_types():
  parsed = build.parse_settings(
    ['ae_sam.lambda_2=2', 'friendly_sam.order=official', 'k_sam.ascent=0.25'],
    ['sgd', 'ae_sam', 'friendly_sam', 'k_sam'],
  )
  assert parsed == {
    'ae_sam': {'lambda_2': 2},
    'friendly_sam': {'order': 'official'},
    'k_sam': {'ascent': 0.25},
  }


@pytest.mark.parametrize(
  ('text', 'named'),
  [
    ('rho=1', 'METHOD.SETTING=VALUE'),
    ('sam.rho', 'METHOD.SETTING=VALUE'),
    ('asam.rho=1', r"'asam' is no method of this run \(sam, ae_sam\)"),
    ('sgd.rho=1', "'sgd' is no method of this run"),
    ('ae_sam.lamda=1', 'choose among rho, decay, lambda_1, lambda_2'),
    ('ae_sam.total_steps=1', 'choose among rho'),
    ('ae_sam.decay=slow', "must be a number, not 'slow'"),
    ('ae_sam.decay=True', "must be a number, not 'True'"),
  ],
)
def test_a_bad_assignment_names_what_is_allowed(text, named):
  with pytest.raises(ValueError, match=named):
    build.parse_settings([text], ['sgd', 'sam', 'ae_sam'])


def test_a_value_out_of_range_names_the_method():
  with pytest.raises(ValueError, match=r'friendly_sam: .*decay'):
    build.optimizer('friendly_sam', {'decay': 2.0}, CONFIG, seed=0)


def test_an_unknown_method_names_the_known_ones():
  with pytest.raises(ValueError, match='sgd, sam, asam'):
    build.check_names(['sam', 'adam'], 'sgd')


def test_the_other_base_is_no_method():
  with pytest.raises(ValueError, match="'sgd' is unknown"):
    build.check_names(['sgd'], 'adamw')


@pytest.mark.parametrize('name', registry.METHODS)
def test_skips_says_whether_a_conditional_is_compiled(name):
  settings = build.complete_settings(name, {}, None)
  tx = optax.with_extra_args_support(
    build.optimizer(name, settings, CONFIG, seed=0, batch_like=BATCH)
  )

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

  program = jax.make_jaxpr(update)(PARAMS, tx.init(PARAMS), BATCH)
  # Renewing a mask now and then is a conditional too, and a walk that goes on
  # only where the gradient is finite.
  parameters = inspect.signature(registry.METHODS[name].factory).parameters
  others = bool({'refresh_every', 'inner_steps'} & set(parameters))
  assert str(program).count(' cond[') == build.skips(name) + others
