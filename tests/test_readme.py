"""README: its Python code is one program, and its tables tell the truth."""

import inspect
import pathlib
import re

import jax
import jax.numpy as jnp
import optax
import pytest

import optax_sam

PAGE = pathlib.Path(__file__).parent.parent / 'README.md'
TABLES = (
  'Methods',
  'Around the base optimizer',
  'Terms of the loss',
  'Noise and averages',
)
NUMBERS = {38: 'thirty-eight', 39: 'thirty-nine', 40: 'forty'}
FENCE = re.compile(r'^```(\w*)\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def python_blocks():
  """Returns (line, code) of each Python block."""
  text = PAGE.read_text()
  return [
    (text[: found.start()].count('\n') + 1, found[2])
    for found in FENCE.finditer(text)
    if found[1] == 'python'
  ]


def rows(heading):
  """Returns the cells of the tables below a heading, without their heads."""
  section = PAGE.read_text().split(f'\n## {heading}\n')[1].split('\n## ')[0]
  lines = [line for line in section.splitlines() if line.startswith('|')]
  cells = [[cell.strip() for cell in line.split('|')[1:-1]] for line in lines]
  # A rule of dashes, and the head above it, begin every table of a section.
  heads = [i for i, row in enumerate(cells) if set(row[0]) == {'-'}]
  return [
    row for i, row in enumerate(cells) if i not in heads and i + 1 not in heads
  ]


@pytest.fixture(scope='module')
def namespace():
  """Runs all blocks one after the other in one namespace, as the page says."""
  blocks = python_blocks()
  assert len(blocks) >= 7
  names = {'__name__': 'readme'}
  for line, code in blocks:
    # Line numbers in a traceback are those of the page.
    program = compile('\n' * line + code, str(PAGE), 'exec')
    exec(program, names)
  return names


def test_every_block_but_the_first_asserts_something():
  silent = [line for line, code in python_blocks() if 'assert ' not in code]
  assert len(silent) == 1


def test_blocks_run(namespace):
  solution = jnp.array([1.0, -2.0, 0.5])
  assert jnp.allclose(namespace['params'], solution, atol=0.05)
  assert int(namespace['state'].step) == 50
  assert int(namespace['optimizer'].step[...]) == 50
  assert int(namespace['model'].dropout.rngs.count[...]) == 50


def test_table_of_methods_is_complete():
  functions = {
    name
    for name in optax_sam.__all__
    if inspect.isfunction(getattr(optax_sam, name))
    and getattr(optax_sam, name).__module__.startswith('optax_sam.methods.')
  }
  names = [row[0].strip('`') for row in rows('Methods')]
  assert sorted(names) == sorted(functions)
  table = dict(zip(names, rows('Methods'), strict=True))
  for name, (_, _, _, paper) in table.items():
    (link,) = re.findall(r'\((https://arxiv.org/abs/[\d.]+)\)', paper)
    assert link in inspect.getdoc(getattr(optax_sam, name)), name


def test_number_of_methods():
  total = sum(len(rows(heading)) for heading in TABLES)
  assert f'{NUMBERS[total]} published methods' in PAGE.read_text()


def test_table_of_what_holds_a_base_is_complete():
  functions = {
    name
    for name in optax_sam.__all__
    if inspect.isfunction(getattr(optax_sam, name))
    and getattr(optax_sam, name).__module__.startswith('optax_sam.wrappers.')
  }
  table = rows('Around the base optimizer')
  names = {row[0].strip('`') for row in table}
  assert names == functions - {'outer_params'}
  for name, _, _, paper in table:
    (link,) = re.findall(r'\((https://arxiv.org/abs/[\d.]+)\)', paper)
    assert link in inspect.getdoc(getattr(optax_sam, name.strip('`'))), name


def test_table_of_noise_and_averages_is_that_of_other_modules():
  table = rows('Noise and averages')
  assert [row[0].strip('`') for row in table] == ['anti_pgd', 'swa', 'swad']
  for name, _, _, paper in table:
    (link,) = re.findall(r'\((https://arxiv.org/abs/[\d.]+)\)', paper)
    assert link in inspect.getdoc(getattr(optax_sam, name.strip('`'))), name


def test_methods_that_need_examples_are_named():
  (cells,) = [row for row in rows('Arguments of a step') if 'batch' in row[0]]
  needs = re.compile(
    r'needs (`params`, and )?`per_example_value_fn` and `batch`'
  )
  needy = {
    name
    for table in TABLES
    for name in (row[0].strip('`') for row in rows(table))
    if needs.search(' '.join(inspect.getdoc(getattr(optax_sam, name)).split()))
  }
  assert set(re.findall(r'`(\w+)`', cells[2])) == needy


def test_table_of_choices_is_complete():
  submodules = {
    'perturbation': optax_sam.perturbations,
    'policy': optax_sam.policies,
    'descent': optax_sam.descents,
    'selection': optax_sam.selections,
  }
  helpers = {'largest', 'num_examples', 'check_size'}
  table = {
    row[0]: re.findall(r'`(\w+)`', row[2])
    for row in rows('A method of your own')
  }
  assert list(table) == list(submodules)
  for choice, module in submodules.items():
    functions = {
      name
      for name, member in vars(module).items()
      if inspect.isfunction(member)
      and member.__module__.startswith(module.__name__)
      and not name.startswith('_')
    }
    assert set(table[choice]) == functions - helpers


def test_state_of_methods_is_as_the_table_says():
  """Says 'none', a key, and what is like the parameters."""
  required = {
    'ae_sam': {'total_steps': 9},
    'ae_look_sam': {'total_steps': 9},
    'ss_sam': {'key': 0},
    'k_sam': {'ascent': 1, 'descent': 1},
    'subset_sam': {'key': 0},
    'unnormalized_sam': {'rho': 0.1},
    'sparse_sam_fisher': {'refresh_every': 9},
    'sparse_sam_dynamic': {'refresh_every': 9, 'total_steps': 9, 'key': 0},
    'esam': {'key': 0},
    'frob_sam': {'key': 0},
    'eigen_sam': {'key': 0},
    'ordered_sgd': {'k': 1},
    'lpf_sgd': {'micro_batches': 1, 'total_steps': 10, 'key': 0},
    'm_sam': {'micro_batch_size': 1},
  }
  params = jnp.zeros(7)
  for cells in rows('Methods'):
    name, kept = cells[0].strip('`'), cells[2]
    method = getattr(optax_sam, name)(**required.get(name, {}))
    state = method.init(params)
    leaves = jax.tree.leaves(
      (state.perturbation, state.policy, state.descent, state.selection)
    )
    keys = [x for x in leaves if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]
    trees = [leaf for leaf in leaves if leaf.shape == params.shape]
    assert (kept == 'none') == (not leaves), name
    assert len(keys) == ('key' in kept), name
    like_params = ('direction' in kept, 'average' in kept, 'mask' in kept)
    assert len(trees) == sum(like_params), name
    assert any(leaf.dtype == bool for leaf in trees) == ('mask' in kept), name


def test_small_perturbation_of_bfloat16_is_lost():
  weights = jnp.ones(1000, jnp.bfloat16)
  element = optax_sam.perturbations.scale_to_radius(0.05)
  epsilon, _ = element.update(weights, element.init(weights), weights)
  assert float(optax.tree.norm(epsilon)) > 0.04
  assert bool(jnp.all(weights + epsilon == weights))
