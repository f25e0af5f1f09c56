"""Bad values are refused by name, with the value, before anything runs."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from tests.contracts import table

# An argument, bad values of it; checked on every method that has it.
_BAD = {
  'rho': [-0.1, float('nan'), '0.05', None, True, [0.05], 1j],
  'p': [1, 3, '2'],
  'ascent_steps': [0, -1, 1.5, True],
  'eta': [-1e-3, 'small'],
  'sigma': [-0.1, 1.1],
  'decay': [-0.1, 1.0, 0],
  'order': ['published', None],
  'probability': [-0.1, 1.1, '0.5'],
  'key': [0.5, 'seed', jnp.zeros(2, jnp.uint32)],
  'period': [0, 2.5, -1, float('inf')],
  'alpha': [-0.1, 1.0, 1.1, float('nan'), None],
  'normalize_clean': [2, 'yes'],
  'clip': [2, 'yes'],
  'per_leaf': [2, 'yes'],
  'rule': ['published', None],
  'max_ratio': [0, -1.0, 'large'],
  'total_steps': [0, -5, 10.5, None],
  'lambda_1': ['low', float('nan')],
  'lambda_2': [None],
  'sparsity': [-0.1, 1.1, 'half', None, True],
  'num_samples': [0, 1.5, True],
  'refresh_every': [0, 2.5, None, float('inf')],
  'pattern': ['half', '4:2', '0:4', None, 2],
  'drop_rate': [0, 1.1, None],
  'beta': [0, 1.1, 'half'],
  'gamma': [0, 0.0, 1.0, -0.5, 1.5, 'half', True],
  'ascent': [0, 0.0, 1.1, -1, True, None],
  'descent': [0, 1.5, 'half'],
  'k': [0, 0.0, 1.5, True, None],
  'fraction': [0, 0.0, 1.5, None],
  'micro_batch_size': [0, -1, 2.5, True, None],
  'micro_batches': [0, -1, 2.5, True, None],
  'final_ratio': [-0.1, float('nan'), 'large', None],
  'penalty': [-0.1, float('nan'), 'large', None],
  'power_steps': [0, 1.5, True],
  'rho_max': [-0.1, float('nan'), 'large', None],
  'quantile': [-0.1, 1.0, 'half', None, True],
  'radius': ['each', None],
  'sync_ascent': ['yes', 2],
  'accumulator_dtype': ['int32', 'half a float', 16],
}
# Values that some method takes.
_GOOD = {
  ('ae_sam', 'decay'): [0.0],
  ('ae_look_sam', 'decay'): [0.0],
  ('momentum_sam', 'decay'): [0],
  ('gsam', 'alpha'): [1.0, 1.1],
  ('gradient_norm_penalty', 'alpha'): [1.0],
  ('wsam', 'gamma'): [0],
  ('esam', 'gamma'): [1.0],
  ('cr_sam', 'gamma'): [0, 0.0, 1.0, 1.5],
  ('lpf_sgd', 'gamma'): [0, 0.0, 1.0, 1.5],
  ('eigen_sam', 'alpha'): [1.0, 1.1],
  ('cr_sam', 'beta'): [0, 1.1],
  ('le_sam', 'sigma'): [1.1],
}
# Arguments of every kind, or checked where they meet the parameters.
_UNCHECKED = {'mask', 'axis_name', 'scaled'}


def _cases():
  for name, row in table.METHODS.items():
    for argument in inspect.signature(row.factory).parameters:
      for value in _BAD.get(argument, ()):
        good = _GOOD.get((name, argument), ())
        if isinstance(value, bool) or value not in good:
          yield name, argument, value


def test_no_argument_is_forgotten():
  for row in table.METHODS.values():
    names = set(inspect.signature(row.factory).parameters)
    assert names <= _BAD.keys() | _UNCHECKED


@pytest.mark.parametrize(('name', 'argument', 'value'), list(_cases()))
def test_a_bad_value_is_refused(name, argument, value):
  row = table.METHODS[name]
  with pytest.raises(ValueError, match=rf'^{argument} must be ') as info:
    row(**{argument: value})
  assert repr(value) in str(info.value)


@pytest.mark.parametrize('value', [jnp.ones(2), np.full((1,), 0.05)])
def test_a_radius_is_one_number(value):
  with pytest.raises(ValueError, match=r'^rho must be one number, got an arr'):
    optax_sam.sam(value)


@pytest.mark.parametrize('value', [jnp.asarray(True), np.asarray(1j)])
def test_a_radius_is_real(value):
  with pytest.raises(ValueError, match=r'^rho must be a real number, got an a'):
    optax_sam.sam(value)


def test_a_method_is_no_wrapper():
  with pytest.raises(ValueError, match=r'write optax\.chain\(optax_sam\.sam'):
    optax_sam.sam(optax.sgd(0.1))


@table.every_row()
def test_complex_parameters_are_refused(name):
  params = {'layer': {'kernel': jnp.ones(2, jnp.complex64)}, 'b': jnp.ones(2)}
  with pytest.raises(ValueError, match=r"real, got .* at 'layer/kernel'"):
    table.ROWS[name]().init(params)


@table.every_row()
def test_parameters_that_are_no_arrays_are_refused(name):
  with pytest.raises(ValueError, match=r"arrays, got a float at 'layer/b'"):
    table.ROWS[name]().init({'layer': {'a': jnp.ones(2), 'b': 1.0}})


@table.every_row(perturbs=True)
def test_averaging_without_an_axis(name):
  with pytest.raises(ValueError, match=r'sync_ascent=True needs axis_name'):
    table.ROWS[name](sync_ascent=True)


def test_required_arguments():
  for name, row in table.METHODS.items():
    needed = {
      parameter.name
      for parameter in inspect.signature(row.factory).parameters.values()
      if parameter.default is inspect.Parameter.empty
    }
    assert needed <= {'rho', *row.arguments}, name
    if needed:
      with pytest.raises(TypeError, match=next(iter(needed))):
        row.factory()


@pytest.mark.parametrize('argument', ['lambda_1', 'lambda_2'])
def test_a_threshold_that_no_step_can_reach(argument):
  with pytest.warns(UserWarning, match=rf'{argument}=4 is above 1 / sqrt'):
    optax_sam.ae_sam(total_steps=10, decay=0.9, **{argument: 4})


_COUPLING = {'rho_max': 0.6, 'rho_min': 0.1, 'lr_max': 1.0, 'lr_min': 0.0}


@pytest.mark.parametrize(
  ('argument', 'value'),
  [
    ('learning_rate', 0.1),
    ('rho_min', -0.1),
    ('rho_max', 0.05),
    ('rho_max', None),
    ('lr_min', 'none'),
    ('lr_max', -1.0),
    ('lr_max', float('nan')),
  ],
)
def test_a_radius_that_cannot_follow_the_learning_rate(argument, value):
  arguments = {'learning_rate': optax.constant_schedule(0.5), **_COUPLING}
  with pytest.raises(ValueError, match=rf'^{argument} must be ') as info:
    optax_sam.rho_like_learning_rate(**{**arguments, argument: value})
  assert repr(value) in str(info.value)


def test_traced_values_pass():
  # Those of optax.inject_hyperparams, which nothing can check.
  @jax.jit
  def build(rho):
    tx = optax_sam.sam(rho)
    w = jnp.array([3.0, 4.0])
    return tx.update(w, tx.init(w), w, grad_fn=lambda p: p)[0]

  assert build(-1.0).tolist() == pytest.approx([2.4, 3.2])


def test_schedules_are_not_called_before_they_are_needed():
  def schedule(_):
    raise AssertionError

  optax_sam.sam(schedule)
  optax_sam.ss_sam(probability=schedule, key=0)
  optax.chain(optax_sam.sam(schedule)).init(jnp.ones(2))
