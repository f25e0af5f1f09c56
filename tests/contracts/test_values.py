"""Invalid values raise an error with argument and value before any step."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from tests.contracts import table

_RADIUS = [-0.1, float('nan'), '0.05', None, True, [0.05], 1j]
# Invalid values by argument, for every method that has it. All other arguments
# must reject a string.
_BAD = {
  'accumulator_dtype': ['int32', 'half a float', 16],
  'alpha': [-0.1, 1.0, 1.1, float('nan'), None],
  'ascent': [0, 0.0, 1.1, -1, True, None],
  'ascent_steps': [0, -1, 1.5, True],
  'b1': [-0.1, 1.0],
  'b2': [1.0, None],
  'base': [0.05, None],
  'beta': [0, 1.1, 'half'],
  'clip': [2, 'yes'],
  'damping': [-0.1],
  'decay': [-0.1, 1.0, 0],
  'descent': [0, 1.5, 'half'],
  'drop_rate': [0, 1.1, None],
  'eta': [-1e-3, 'small'],
  'every': [0, 1.5, None],
  'final_ratio': [-0.1, float('nan'), 'large', None],
  'fraction': [0, 0.0, 1.5, None],
  'gamma': [0, 0.0, 1.0, -0.5, 1.5, 'half', True],
  'initial_precision': [0, -1.0],
  'inner_learning_rate': [-0.1],
  'inner_steps': [0, 1.5],
  'k': [0, 0.0, 1.5, True, None],
  'key': [0.5, 'seed', jnp.zeros(2, jnp.uint32)],
  'lambda_1': ['low', float('nan')],
  'lambda_2': [None],
  'learning_rate': [-0.1, None],
  'max_ratio': [0, -1.0, 'large'],
  'micro_batch_size': [0, -1, 2.5, True, None],
  'micro_batches': [0, -1, 2.5, True, None],
  'mix': [-0.1, 1.1, 'half'],
  'noise': [-0.1],
  'normalize_clean': [2, 'yes'],
  'num_data': [0, None],
  'end': [-1, 2.5],
  'num_perturbations': [0, 1.5, True],
  'num_samples': [0, 1.5, True],
  'order': ['published', None],
  'p': [1, 3, '2'],
  'pattern': ['half', '4:2', '0:4', None, 2],
  'penalty': [-0.1, float('nan'), 'large', None],
  'per_leaf': [2, 'yes'],
  'period': [0, 2.5, -1, float('inf')],
  'power_steps': [0, 1.5, True],
  'prior_precision': [-1],
  'probability': [-0.1, 1.1, '0.5'],
  'layers': [0, -0.1, 1.1, float('nan')],
  'quantile': [-0.1, 1.0, 'half', None, True],
  'radius': ['each', None],
  'refresh_every': [0, 2.5, None, float('inf')],
  'rho': _RADIUS,
  'rho_max': [-0.1, float('nan'), 'large', None],
  'rule': ['published', None],
  'scoping': [-0.1],
  'sigma': [-0.1, 1.1],
  'sparsity': [-0.1, 1.1, 'half', None, True],
  'start': [0, 1.5, None],
  'steps': [0, 1.5, True],
  'theta': [0, 1.1, 'half'],
  'tilt': [-0.1, None],
  'sync_ascent': ['yes', 2],
  'total_steps': [0, -5, 10.5, None],
  'weight_decay': [-0.1],
}
# Values that some methods accept.
_GOOD = {
  ('ae_look_sam', 'decay'): [0.0],
  ('ae_sam', 'decay'): [0.0],
  ('anti_pgd', 'sigma'): [1.1],
  ('cr_sam', 'beta'): [0, 1.1],
  ('cr_sam', 'gamma'): [0, 0.0, 1.0, 1.5],
  ('eigen_sam', 'alpha'): [1.0, 1.1],
  ('entropy_sgd', 'gamma'): [0, 0.0, 1.0, 1.5],
  ('esam', 'gamma'): [1.0],
  ('gradient_norm_penalty', 'alpha'): [1.0],
  ('gsam', 'alpha'): [1.0, 1.1],
  ('lookbehind', 'alpha'): [1.0],
  ('momentum_sam', 'decay'): [0],
  ('sagm', 'alpha'): [1.0, 1.1],
  ('late_sam', 'start'): [0],
  ('late_sam', 'total_steps'): [None],
  ('wsam', 'gamma'): [0],
  ('wsam_decoupled', 'gamma'): [0],
}
# Arguments of any type, or validated together with the parameters.
_UNCHECKED = {'mask', 'axis_name', 'scaled', 'batch_like'}


def _bad(row, argument):
  """Returns values of an argument that a method must reject."""
  if argument in _UNCHECKED:
    return []
  is_radius = argument == row.radius
  values = _RADIUS if is_radius else _BAD.get(argument, ['no such value'])
  good = _GOOD.get((row.name, argument), ())
  # A bool is rejected even if an equal number is valid.
  return [x for x in values if isinstance(x, bool) or x not in good]


@table.every_method()
def test_invalid_values_raise(name):
  row = table.METHODS[name]
  for argument in row.parameters:
    for value in _bad(row, argument):
      given = {**row.settings(), argument: value}
      if row.place == 'wraps':
        given = {'base': optax.sgd(0.1), **given}
      with pytest.raises(ValueError, match=rf'^{argument} must be ') as info:
        row.function(**given)
      assert repr(value) in str(info.value)


@table.every_method(lambda row: 'sync_ascent' in row.parameters)
def test_sync_ascent_without_an_axis_raises(name):
  with pytest.raises(ValueError, match=r'sync_ascent=True needs axis_name'):
    table.METHODS[name].alone(sync_ascent=True)


@table.every_method(lambda row: row.place != 'after')
def test_parameters_that_are_not_real_arrays_raise(name):
  init = table.METHODS[name].alone(base=lambda: optax.sgd(0.1)).init
  params = {'layer': {'kernel': jnp.ones(2, jnp.complex64)}, 'b': jnp.ones(2)}
  with pytest.raises(ValueError, match=r"real, got .* at 'layer/kernel'"):
    init(params)
  with pytest.raises(ValueError, match=r"arrays, got a float at 'layer/b'"):
    init({'layer': {'a': jnp.ones(2), 'b': 1.0}})


@pytest.mark.parametrize('value', [jnp.ones(2), np.full((1,), 0.05)])
def test_a_radius_that_is_not_a_scalar_raises(value):
  with pytest.raises(ValueError, match=r'^rho must be one number, got an arr'):
    optax_sam.sam(value)


def test_a_base_optimizer_as_the_radius_raises():
  with pytest.raises(ValueError, match=r'write optax\.chain\(optax_sam\.sam'):
    optax_sam.sam(optax.sgd(0.1))


@pytest.mark.parametrize('argument', ['lambda_1', 'lambda_2'])
def test_a_threshold_that_no_step_can_reach_warns(argument):
  with pytest.warns(UserWarning, match=rf'{argument}=4 is above 1 / sqrt'):
    optax_sam.ae_sam(total_steps=10, decay=0.9, **{argument: 4})


def test_a_radius_that_cannot_follow_the_learning_rate_raises():
  good = {'rho_max': 0.6, 'rho_min': 0.1, 'lr_max': 1.0, 'lr_min': 0.0}
  rate = optax.constant_schedule(0.5)
  for argument in good:
    for value in (float('nan'), 'large'):
      with pytest.raises(ValueError, match=rf'^{argument} must be ') as info:
        optax_sam.rho_like_learning_rate(rate, **{**good, argument: value})
      assert repr(value) in str(info.value)
