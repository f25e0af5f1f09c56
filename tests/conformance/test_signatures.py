"""Arguments, their order and their defaults: a published setting is a number.

`mask`, `axis_name` and `sync_ascent` are those of `tests/contracts`.
"""

import inspect

import pytest

import optax_sam

COMMON = ('mask', 'axis_name', 'sync_ascent')
NEEDED = inspect.Parameter.empty
# What comes first is positional, the rest keyword-only.
ARGUMENTS = {
  'sam': {'rho': 0.05, 'p': 2, 'ascent_steps': 1},
  'asam': {'rho': 0.5, 'eta': 0.01, 'scaled': None},
  'sparse_sam_fisher': {
    'rho': 0.05,
    'sparsity': 0.5,
    'num_samples': 128,
    'refresh_every': NEEDED,
    'pattern': 'global',
  },
  'sparse_sam_dynamic': {
    'rho': 0.05,
    'sparsity': 0.5,
    'drop_rate': 0.5,
    'refresh_every': NEEDED,
    'total_steps': NEEDED,
    'key': NEEDED,
  },
  'friendly_sam': {
    'rho': 0.05,
    'sigma': 1.0,
    'decay': 0.9,
    'order': 'paper',
    'accumulator_dtype': None,
  },
  'ae_sam': {
    'rho': 0.05,
    'total_steps': NEEDED,
    'decay': 0.9,
    'lambda_1': -1.0,
    'lambda_2': 1.0,
  },
  'ae_look_sam': {
    'rho': 0.05,
    'total_steps': NEEDED,
    'decay': 0.9,
    'lambda_1': 0.0,
    'lambda_2': 2.0,
    'alpha': 0.1,
    'accumulator_dtype': None,
  },
  'look_sam': {
    'rho': 0.05,
    'period': 5,
    'alpha': 0.1,
    'per_leaf': False,
    'accumulator_dtype': None,
  },
  'look_layer_sam': {
    'rho': 0.05,
    'period': 5,
    'alpha': 0.1,
    'rule': 'global',
    'max_ratio': 20.0,
    'accumulator_dtype': None,
  },
  'ss_sam': {'rho': 0.05, 'probability': 0.5, 'key': NEEDED},
  'esam': {'rho': 0.05, 'beta': 0.6, 'gamma': 0.5, 'key': NEEDED},
  'k_sam': {'rho': 0.05, 'ascent': NEEDED, 'descent': NEEDED},
  'ordered_sgd': {'k': NEEDED},
  'subset_sam': {'rho': 0.05, 'fraction': 0.25, 'key': None},
  'm_sam': {'rho': 0.05, 'micro_batch_size': NEEDED},
  'gsam': {'rho': 0.05, 'alpha': 0.4},
  'fisher_sam': {'rho': 0.1, 'eta': 1.0},
  'gradient_norm_penalty': {
    'rho': 0.1,
    'alpha': 0.8,
    'normalize_clean': False,
  },
  'wsam': {'rho': 0.05, 'gamma': 0.9},
  'wsam_decoupled': {
    'base': NEEDED,
    'rho': 0.05,
    'gamma': 0.9,
    'learning_rate': NEEDED,
  },
  'lookbehind': {'base': NEEDED, 'rho': 0.05, 'steps': 2, 'alpha': 0.5},
  'sampa': {'base': NEEDED, 'rho': 0.1, 'mix': 0.2, 'batch_like': NEEDED},
  'b_sam': {
    'learning_rate': 0.5,
    'rho': 0.01,
    'b1': 0.9,
    'b2': 0.999,
    'damping': 0.1,
    'prior_precision': 40.0,
    'initial_precision': 1.0,
    'micro_batches': 8,
    'num_data': NEEDED,
    'key': NEEDED,
  },
  'entropy_sgd': {
    'learning_rate': 1.0,
    'inner_steps': 20,
    'inner_learning_rate': 0.1,
    'gamma': 0.03,
    'scoping': 1e-3,
    'noise': 1e-4,
    'weight_decay': 0.0,
    'key': NEEDED,
  },
  'unnormalized_sam': {'rho': NEEDED, 'clip': False},
  'le_sam': {'sigma': 0.35, 'rho_max': 0.5},
  'z_sharp': {'rho': 0.05, 'quantile': 0.95, 'radius': 'global'},
  'momentum_sam': {'rho': 3.0, 'decay': 0.9, 'accumulator_dtype': None},
  'async_sam': {'rho': 0.05, 'accumulator_dtype': None},
  'cr_sam': {'rho': 0.1, 'gamma': 0.1, 'beta': 0.01},
  'frob_sam': {
    'rho': 0.005,
    'penalty': 0.005,
    'num_samples': 2,
    'key': NEEDED,
  },
  'lpf_sgd': {
    'gamma': 0.0005,
    'micro_batches': 8,
    'final_ratio': 15.0,
    'total_steps': NEEDED,
    'key': NEEDED,
  },
  'eigen_sam': {
    'rho': 0.1,
    'alpha': 0.2,
    'refresh_every': 100,
    'power_steps': 5,
    'key': NEEDED,
    'accumulator_dtype': None,
  },
}


@pytest.mark.parametrize('name', ARGUMENTS)
def test_arguments(name):
  parameters = inspect.signature(getattr(optax_sam, name)).parameters
  own = {k: p.default for k, p in parameters.items() if k not in COMMON}
  assert list(own.items()) == list(ARGUMENTS[name].items())
  types = {k: type(default) for k, default in own.items()}
  assert types == {k: type(x) for k, x in ARGUMENTS[name].items()}
  positional = [k for k, p in parameters.items() if p.kind != p.KEYWORD_ONLY]
  first = [] if name == 'ordered_sgd' else [next(iter(own))]
  assert positional == first


def test_no_method_is_left_out():
  methods = {
    name
    for name in optax_sam.__all__
    if inspect.isfunction(function := getattr(optax_sam, name))
    and function.__module__.startswith(
      ('optax_sam.methods.', 'optax_sam.wrappers')
    )
  }
  assert methods - {'outer_params'} == set(ARGUMENTS)


@pytest.mark.parametrize('name', sorted(ARGUMENTS.keys() - {'wsam_decoupled'}))
def test_texts_say_what_all_have_in_common_in_the_same_words(name):
  function = getattr(optax_sam, name)
  text = ' '.join(inspect.getdoc(function).split())
  phrases = {
    'mask': 'leaves that may be perturbed; see `optax_sam.sharpness_aware`.',
    'axis_name': (
      'device axis to average over; see `optax_sam.sharpness_aware`.'
    ),
    'sync_ascent': 'whether the ascent gradient is averaged too; see there.',
  }
  for argument in inspect.signature(function).parameters:
    if argument in phrases:
      assert f'{argument}: {phrases[argument]}' in text
  assert 'Cost: ' in text
  assert ' State: ' in text
