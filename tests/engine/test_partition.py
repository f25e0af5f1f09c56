"""Partition of leaves: perturbed, only updated, and not floating-point."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from tests.contracts import comparisons, training

_ONLY_NORM = {'dense': False, 'norm': True}
_MASKS = {
  'prefix': _ONLY_NORM,
  'full': {'dense': {'bias': False, 'kernel': False}, 'norm': {'scale': True}},
  'callable': lambda _: _ONLY_NORM,
  'norm_layers_only': optax_sam.norm_layers_only,
  'numpy': {'dense': np.False_, 'norm': np.True_},
}


@pytest.mark.parametrize('mask', _MASKS)
def test_all_forms_of_a_mask_are_equivalent(mask):
  params = training.params()
  tx = optax_sam.sam(0.5, mask=_MASKS[mask])
  gradient = training.gradient(params, training.batch())
  points, _ = tx.update(gradient, tx.init(params), params, grad_fn=lambda p: p)
  comparisons.assert_equal(points['dense'], params['dense'])
  scale = gradient['norm']['scale']
  np.testing.assert_allclose(
    points['norm']['scale'],
    params['norm']['scale'] + 0.5 * scale / jnp.linalg.norm(scale),
    rtol=1e-6,
  )


def test_a_norm_layer_mask_without_such_layers_raises():
  with pytest.raises(ValueError, match=r"no normalization layer among \['den"):
    optax_sam.sam(mask=optax_sam.norm_layers_only).init({'dense': jnp.ones(2)})


def test_a_function_that_chooses_no_leaf_is_refused():
  rule = lambda params: {name: 'kernel' in name for name in params}
  with pytest.raises(ValueError, match="chooses none of 'weights'"):
    optax_sam.sam(mask=rule).init({'weights': jnp.ones(2)})


@pytest.mark.parametrize(
  ('name', 'is_norm'),
  [
    ('BatchNorm_0', True),
    ('layer_norm', True),
    ('bn1', True),
    ('ln_2', True),
    ('gn', True),
    ('conv', False),
    ('lndense', False),
  ],
)
def test_normalization_layers_are_recognized_by_name(name, is_norm):
  params = {name: {'w': jnp.ones(2)}, 'norm': jnp.ones(2)}
  chosen = optax_sam.norm_layers_only(params)
  assert chosen == {name: {'w': is_norm}, 'norm': True}


def test_masked_complex_parameters_are_updated():
  loss = lambda p: jnp.sum(p['w'] ** 4) + jnp.sum(jnp.abs(p['c']) ** 2)
  params = {'w': jnp.ones(2), 'c': jnp.ones(2, jnp.complex64)}
  grads = jax.grad(loss)(params)
  is_real = lambda leaf: not jnp.iscomplexobj(leaf)
  for mask in ({'w': True, 'c': False}, lambda p: jax.tree.map(is_real, p)):
    tx = optax_sam.sam(0.1, mask=mask)
    updates, _ = tx.update(grads, tx.init(params), params, value_fn=loss)
    comparisons.assert_equal(updates['c'], grads['c'])
    assert float(updates['w'][0]) > float(grads['w'][0])


def test_a_gradient_function_of_all_leaves_is_accepted():
  params = {'weight': jnp.ones(2), 'steps': jnp.asarray(3), 'nothing': None}
  zero = np.zeros((), jax.dtypes.float0)
  grad_fn = lambda p: {'weight': p['weight'], 'steps': zero, 'nothing': None}
  tx = optax_sam.sam(2**0.5)
  updates, _ = tx.update(
    grad_fn(params), tx.init(params), params, grad_fn=grad_fn
  )
  np.testing.assert_allclose(updates['weight'], 2 * jnp.ones(2), rtol=1e-6)
  assert updates['steps'] is zero
