import inspect

import jax.numpy as jnp
import optax
import pytest

import optax_sam
from optax_sam.train import methods


@pytest.mark.parametrize('name', methods.METHODS)
def test_every_row_builds_a_chain_element(name):
  settings = methods.complete_settings(name, {}, None)
  built = methods.build(name, settings, total_steps=10, seed=0)
  state = optax.chain(built, optax.sgd(0.1)).init(jnp.ones(3))
  assert optax_sam.metrics(state)['second_gradients'] == 0


@pytest.mark.parametrize('name', methods.METHODS)
def test_settings_are_those_of_the_signature(name):
  parameters = inspect.signature(methods.METHODS[name].factory).parameters
  settings = methods.complete_settings(name, {}, None)
  assert set(settings) == set(methods.settable(name))
  for key, value in settings.items():
    default = parameters[key].default
    assert default in {inspect.Parameter.empty, value}


def test_any_other_name_is_the_base_optimizer_alone():
  built = methods.build('sgd', {}, total_steps=1, seed=0)
  updates, _ = built.update(jnp.ones(2), built.init(jnp.ones(2)))
  assert updates.tolist() == [1.0, 1.0]


def test_an_explicit_setting_beats_rho_which_beats_the_default():
  assert methods.complete_settings('asam', {}, None)['rho'] == 0.5
  assert methods.complete_settings('asam', {}, 0.2)['rho'] == 0.2
  assert methods.complete_settings('asam', {'rho': 1}, 0.2)['rho'] == 1


def test_a_method_that_perturbs_nothing_is_offered_no_radius():
  assert set(methods.complete_settings('ordered_sgd', {}, 0.2)) == {'k'}
  with pytest.raises(ValueError, match=r"no setting 'rho'; choose among k$"):
    methods.parse_settings(['ordered_sgd.rho=1'], ['ordered_sgd'])


def test_every_public_method_has_a_row():
  public = {
    name
    for name, member in vars(optax_sam).items()
    if inspect.isfunction(member)
    and member.__module__.startswith('optax_sam.methods.')
  }
  assert set(methods.METHODS) == public


def test_assignments_are_parsed_with_their_types():
  parsed = methods.parse_settings(
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
    methods.parse_settings([text], ['sgd', 'sam', 'ae_sam'])


def test_a_value_out_of_range_names_the_method():
  with pytest.raises(ValueError, match=r'friendly_sam: .*decay'):
    methods.build('friendly_sam', {'decay': 2.0}, total_steps=1, seed=0)


def test_an_unknown_method_names_the_known_ones():
  with pytest.raises(ValueError, match='sgd, sam, asam'):
    methods.check_names(['sam', 'adam'], 'sgd')


def test_the_other_base_is_no_method():
  with pytest.raises(ValueError, match="'sgd' is unknown"):
    methods.check_names(['sgd'], 'adamw')


@pytest.mark.parametrize('name', methods.METHODS)
def test_skips_says_whether_a_conditional_is_compiled(name):
  import jax

  settings = methods.complete_settings(name, {}, None)
  tx = optax.chain(
    methods.build(name, settings, total_steps=10, seed=0), optax.sgd(0.1)
  )

  def update(params, state, batch):
    def losses(params, batch):
      return batch @ params

    return tx.update(
      params,
      state,
      params,
      value_fn=lambda p: jnp.mean(losses(p, batch)),
      per_example_value_fn=losses,
      batch=batch,
    )

  params = jnp.ones(3)
  program = jax.make_jaxpr(update)(params, tx.init(params), jnp.ones((4, 3)))
  # Renewing a mask now and then is a conditional too.
  parameters = inspect.signature(methods.METHODS[name].factory).parameters
  refreshes = 'refresh_every' in parameters
  assert str(program).count(' cond[') == methods.skips(name) + refreshes
