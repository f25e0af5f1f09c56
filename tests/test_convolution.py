import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import optax_sam
from tests import compiling

LETTERS = {1: 'W', 2: 'HW', 3: 'DHW'}
PAIRS = ((1, 1), (1, 1))
IN_ORDER = re.compile(r'dim_labels=b\d+f_\d+io->b\d+f')


def arrays(space, kernel, features=(3, 5), batch=4, dtype=np.float64):
  random = np.random.default_rng(0)
  lhs = random.normal(size=(batch, *space, features[0]))
  rhs = random.normal(size=(*kernel, *features))
  return jnp.asarray(lhs, dtype), jnp.asarray(rhs, dtype)


def order(axes):
  return (f'N{LETTERS[axes]}C', f'{LETTERS[axes]}IO', f'N{LETTERS[axes]}C')


def gradients(function, *operands, **settings):
  def value(lhs, rhs):
    y = function(lhs, rhs, **settings)
    return jnp.sum(jnp.sin(y) * y), y

  return jax.jit(jax.value_and_grad(value, argnums=(0, 1), has_aux=True))(
    *operands
  )


CASES = [
  ((7, 6), 1, 2, 'SAME'),
  ((7, 6), 2, 1, 'VALID'),
  ((7, 6), 2, 3, 'pairs'),
  ((7, 6), 3, 1, 'SAME'),
  ((7, 6), 3, 2, 'VALID'),
  ((8,), 3, 3, 'pairs'),
  ((5, 4, 6), 2, 2, 'SAME'),
]


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize(('space', 'side', 'stride', 'padding'), CASES)
def test_results_equal_those_of_lax(space, side, stride, padding):
  axes = len(space)
  if padding == 'pairs':
    padding = [(2, 1)] * axes
  operands = arrays(space, (side,) * axes)
  settings = {
    'window_strides': (stride,) * axes,
    'padding': padding,
    'dimension_numbers': order(axes),
  }
  expected = gradients(lax.conv_general_dilated, *operands, **settings)
  found = gradients(optax_sam.conv_general_dilated, *operands, **settings)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-12),
    found,
    expected,
  )


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize(
  'settings',
  [
    {'rhs_dilation': (2, 2)},
    {'lhs_dilation': (2, 1)},
    {'dimension_numbers': ('HWNC', 'HWIO', 'HWNC')},
    {'batch_group_count': 2},
    {'preferred_element_type': np.float64},
  ],
)
def test_unusual_arguments_use_lax(settings):
  settings = {'dimension_numbers': order(2)} | settings
  operands = arrays((6, 6), (3, 3), (3, 6))

  def jaxpr(function):
    return str(
      jax.make_jaxpr(
        lambda lhs, rhs: function(lhs, rhs, (1, 1), PAIRS, **settings)
      )(*operands)
    )

  assert jaxpr(optax_sam.conv_general_dilated) == jaxpr(
    lax.conv_general_dilated
  )


def test_other_platforms_use_the_gradients_of_jax():
  operands = arrays((8, 8), (3, 3), dtype=np.float32)

  def text(convolution, platform):
    def value(*operands):
      y = convolution(
        *operands, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
      )
      return jnp.sum(y**2)

    gradient = jax.jit(jax.grad(value, argnums=(0, 1)))
    lowered = gradient.trace(*operands).lower(lowering_platforms=(platform,))
    found = re.findall(r'stablehlo.convolution.*', lowered.as_text())
    return sorted(re.sub(r'%\S+', '', line) for line in found)

  ours, plain = optax_sam.conv_general_dilated, lax.conv_general_dilated
  assert text(ours, 'tpu') == text(plain, 'tpu')
  assert text(ours, 'cpu') != text(plain, 'cpu')


def test_gradients_inside_a_conditional_use_the_layout_of_fast_kernels():
  operands = arrays((8, 8), (3, 3), dtype=np.float32)

  def value(lhs, rhs):
    for _ in range(2):
      y = optax_sam.conv_general_dilated(
        lhs, rhs, (2, 2), 'SAME', dimension_numbers=order(2)
      )
      lhs = jnp.tile(y, 2)[..., :3]
    return jnp.sum(jnp.sin(y))

  def branches(pred, *operands):
    grad_fn = jax.grad(value, argnums=(0, 1))
    return lax.cond(pred, grad_fn, lambda *x: x, *operands)

  program = jax.jit(branches, **compiling.READ_AS_USERS)
  compiled = program.lower(True, *operands).compile()
  lines = compiled.as_text().splitlines()
  found = [line for line in lines if ' convolution(' in line]
  assert len(found) == 6
  assert all(IN_ORDER.search(line) for line in found)


@pytest.mark.usefixtures('float64')
def test_hessian_vector_products_equal_those_of_lax():
  lhs, rhs = arrays((6, 5), (3, 3))

  def product(function):
    def value(rhs):
      y = function(lhs, rhs, (2, 1), 'SAME', dimension_numbers=order(2))
      return jnp.sum(jnp.sin(y))

    return jax.jit(lambda v: jax.jvp(jax.grad(value), (rhs,), (v,))[1])(
      jnp.cos(rhs)
    )

  np.testing.assert_allclose(
    product(optax_sam.conv_general_dilated),
    product(lax.conv_general_dilated),
    rtol=1e-10,
  )
