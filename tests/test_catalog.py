"""The facts in the catalog agree with the code."""

import inspect
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import optax
import pytest

import optax_sam
import optax_sam.lora
from optax_sam.catalog import GROUPS, METHODS

PARAMS = jnp.arange(1.0, 4.0)
BATCH = {'x': jnp.ones((8, 3)), 'y': jnp.ones(8)}
TRANSFORMATIONS = [x.name for x in METHODS.values() if x.is_transformation]
every_row = pytest.mark.parametrize('name', METHODS)
every_transformation = pytest.mark.parametrize('name', TRANSFORMATIONS)


def losses(params, batch):
  return jnp.square(batch['x'] @ params - batch['y'])


def mean_loss(params):
  return jnp.mean(losses(params, BATCH))


def build(name):
  row = METHODS[name]
  base = {'base': optax.sgd(0.1)} if 'base' in parameters(name) else {}
  return row.function(**base, **row.example)


def parameters(name):
  return inspect.signature(METHODS[name].function).parameters


def takes_a_step(name, **given):
  """Returns whether a step can be traced with these arguments."""
  tx = optax.with_extra_args_support(build(name))
  step = lambda grads, state: tx.update(grads, state, PARAMS, **given)
  try:
    jax.eval_shape(step, PARAMS, tx.init(PARAMS))
  except ValueError:
    return False
  return True


def test_every_public_function_that_builds_a_method_has_a_row():
  def builds_a_method(function):
    returns = inspect.signature(function).return_annotation
    return inspect.isclass(returns) and hasattr(returns, 'init')

  public = {
    name: getattr(module, name)
    for module in (optax_sam, optax_sam.lora)
    for name in module.__all__
  }
  found = {
    name
    for name, member in public.items()
    if inspect.isfunction(member) and builds_a_method(member)
  }
  helpers = {'alternating', 'hide_arguments', 'sharpness_aware'}
  # A part of `bi_lora`, and a function that returns noise.
  assert found - helpers - {'clip_products'} == set(METHODS) - {'flat_noise'}
  assert all(row.function is public[name] for name, row in METHODS.items())
  assert {row.group for row in METHODS.values()} == set(GROUPS)


@every_row
def test_example_has_exactly_the_required_arguments(name):
  required = {
    key
    for key, value in parameters(name).items()
    if value.default is inspect.Parameter.empty
  }
  assert set(METHODS[name].example) == required - {'base'}
  build(name)


@every_row
def test_named_arguments_are_in_the_signature(name):
  row = METHODS[name]
  named = {*row.static, *re.findall('`(.+?)`', row.gradients)}
  if row.radius is not None:
    named.add(row.radius)
  else:
    assert 'rho' not in parameters(name)
  assert named <= set(parameters(name))


@every_row
def test_sync_ascent_is_offered_where_collectives_say_so(name):
  offered = METHODS[name].collectives[1] != 'not offered'
  assert ('sync_ascent' in parameters(name)) == offered


@every_row
def test_docstring_links_to_the_paper(name):
  row = METHODS[name]
  assert f'<{row.paper.link}>' in inspect.getdoc(row.function)


@every_transformation
def test_needs_names_the_missing_function_of_the_loss(name):
  needs = METHODS[name].needs
  assert takes_a_step(name) == (needs == '')
  assert takes_a_step(name, grad_fn=jax.grad(mean_loss)) == (
    needs in ('', 'value_fn')
  )
  assert takes_a_step(name, value_fn=mean_loss) == (needs != 'examples')
  assert takes_a_step(name, per_example_value_fn=losses, batch=BATCH)


# Number of parameter-like trees for each entry of `state`.
SIZES = {
  'average of gradients': 1,
  'average of the weights': 1,
  'mask': 1,
  'momentum': 1,
  'one direction': 1,
  'three averages of the weights': 3,
  'two moments': 2,
  'two points': 2,
}


@pytest.mark.parametrize('name', [*TRANSFORMATIONS, 'swad', 'mesa_loss'])
def test_the_state_agrees_with_the_row(name):
  params = jnp.zeros(7)
  paths, _ = jax.tree.flatten_with_path(build(name).init(params))
  skipped = {'info', 'base'}
  arrays = [
    leaf
    for path, leaf in paths
    if not skipped & {getattr(key, 'name', None) for key in path}
  ]
  is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
  is_counter = lambda x: x.shape == () and jnp.issubdtype(x.dtype, jnp.integer)
  keys = [x for x in arrays if is_key(x)]
  like_params = [x for x in arrays if x.shape == params.shape]

  state = METHODS[name].state.partition(' (')[0]
  stated = state.split(', ')
  assert (state == 'none') == all(map(is_counter, arrays))
  assert len(keys) == ('PRNG key' in stated)
  assert len(like_params) == sum(SIZES.get(entry, 0) for entry in stated)
  assert any(x.dtype == bool for x in like_params) == ('mask' in stated)


def test_every_method_is_in_the_file_of_its_family():
  package = pathlib.Path(optax_sam.__file__).parent
  files = [x for x in package.rglob('*.py') if x.stem != '__init__']
  families = {x.stem for x in files if x.parent == package / 'methods'}
  rows = [row for row in METHODS.values() if row.place != 'adapters']
  assert families == {row.family for row in rows}
  for row in rows:
    name = row.name
    assert set(row.family.split('_')) <= set(name.split('_'))
  assert len({x.stem for x in files}) == len(files)  # unique names


def test_the_catalog_starts_no_backend():
  """Devices can be configured after its import."""
  program = (
    "import jax, optax_sam.catalog\njax.config.update('jax_num_cpu_devices', 2)"
  )
  subprocess.run([sys.executable, '-c', program], check=True, timeout=120)
