"""The README: its Python code is one program."""

import pathlib
import re

import jax.numpy as jnp
import optax
import pytest

import optax_sam

PAGE = pathlib.Path(__file__).parent.parent / 'README.md'
FENCE = re.compile(r'^```(\w*)\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def python_blocks():
  """Returns (line, code) of each Python block."""
  text = PAGE.read_text()
  return [
    (text[: found.start()].count('\n') + 1, found[2])
    for found in FENCE.finditer(text)
    if found[1] == 'python'
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


def test_small_perturbation_of_bfloat16_is_lost():
  weights = jnp.ones(1000, jnp.bfloat16)
  element = optax_sam.perturbations.scale_to_radius(0.05)
  epsilon, _ = element.update(weights, element.init(weights), weights)
  assert float(optax.tree.norm(epsilon)) > 0.04
  assert bool(jnp.all(weights + epsilon == weights))
