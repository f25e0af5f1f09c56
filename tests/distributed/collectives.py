"""What devices tell one another, counted in compiled programs.

Compiled, since that is what runs: written down, an average of a tree is one
operation a leaf, of which XLA joins those that don't wait for one another into
one. So bytes are those of all the shapes in a result.
"""

import functools
import math
import re

import jax
import optax
import pytest
from jax.sharding import PartitionSpec

from optax_sam.catalog import METHODS
from tests.distributed import problem, ways

GRADIENT = 4 * 49  # bytes: one of the problem's
INFO = 4 * 2  # ascent_norm and perturbed_loss
WITH_INFO = GRADIENT + INFO
# From what the documentation says to bytes of the all-reduces: of every step,
# in the branch of a conditional, in a loop.
MEANING = {
  'none': ([WITH_INFO], [], []),
  '1 a step': ([GRADIENT, WITH_INFO], [], []),
  '1 a step, joined': ([GRADIENT + WITH_INFO], [], []),
  '1 a step, no norm': ([2 * GRADIENT + 4], [], []),
  # Of two steps, one batch.
  'steps - 1, joined': ([GRADIENT + WITH_INFO], [], []),
  'steps a step': ([GRADIENT, GRADIENT, WITH_INFO], [], []),
  'none, no info': ([GRADIENT], [], []),
  '1 a product': ([WITH_INFO], [4], [GRADIENT]),
  '1 a step, 1 a product': ([GRADIENT, WITH_INFO], [4], [GRADIENT]),
  '2 a step, 1 joined': ([GRADIENT, GRADIENT + WITH_INFO], [], []),
  '1 a step, without info': ([INFO, 2 * GRADIENT], [], []),
  # Without it there is but the clean gradient to be averaged, and no info.
  '1 an ascent': ([GRADIENT], [WITH_INFO], []),
  '1 a refresh': ([WITH_INFO], [GRADIENT], []),
  '1 a step, 1 a refresh': ([GRADIENT, WITH_INFO], [GRADIENT], []),
  # Eight examples in parts of three: the remainder stands outside of the loop.
  '1 a part': ([GRADIENT, WITH_INFO], [], [GRADIENT]),
}
# XLA cuts these up as it likes: bytes of all that every step averages. Clean
# gradient, direction and info; gradients and losses of two samples.
IN_PIECES = {
  '1 + num_samples a step': GRADIENT + WITH_INFO + 2 * (GRADIENT + 4)
}
COLLECTIVE = re.compile(
  r' = (?P<result>.*?) (?P<name>all-gather|all-reduce|all-to-all|'
  r'collective-broadcast|collective-permute|ragged-all-to-all|reduce-scatter)'
  r'(?:-start)?\('
)


def documented():
  """Returns (local, synced) of the catalog, by method."""
  return {name: METHODS[name].collectives for name in problem.METHODS}


def all_reduces(tx):
  """Returns the bytes of every all-reduce of a compiled step, by where it is.

  Raises if there is any other collective.
  """
  params = problem.params()
  of_state = problem.specs(tx.init(params))
  step = jax.shard_map(
    functools.partial(problem.train_step, tx, cast_over='data'),
    mesh=ways.mesh(),
    in_specs=(PartitionSpec(), of_state, PartitionSpec('data')),
    out_specs=(PartitionSpec(), of_state),
  )
  batch = jax.tree.map(lambda x: x[0], problem.batches())
  lowered = jax.jit(step).lower(params, tx.init(params), batch)
  return of_program(lowered.compile().as_text())


def of_program(text):
  branches = re.findall(
    r'(?:true|false)_computation=\S+|branch_computations=\{.*?\}', text
  )
  inside = {
    'branch': set(re.findall(r'%([\w.-]+)', ' '.join(branches))),
    'loop': set(re.findall(r'body=%([\w.-]+)', text)),
  }
  found = {'step': [], 'branch': [], 'loop': []}
  where = None
  for line in text.splitlines():
    header = re.match(r'(ENTRY )?%([\w.-]+) \(.*\{$', line)
    if header:
      entry, name = header.groups()
      where = 'step' if entry else None
      for kind, computations in inside.items():
        where = kind if name in computations else where
    operation = COLLECTIVE.search(line)
    if operation:
      assert operation['name'] == 'all-reduce', line
      found[where].append(num_bytes(operation['result']))
  return tuple(sorted(sizes) for sizes in found.values())


def num_bytes(result):
  """Returns the bytes of a shape, or of a tuple of shapes."""
  shapes = re.findall(r'(\w+)\[([\d,]*)\]', result)
  assert {dtype for dtype, _ in shapes} == {'f32'}, result
  return 4 * sum(
    math.prod(map(int, filter(None, shape.split(',')))) for _, shape in shapes
  )


def averaging_sgd():
  average = optax.stateless(lambda g, _: jax.lax.pmean(g, 'data'))
  return optax.with_extra_args_support(optax.chain(average, optax.sgd(0.05)))


def test_plain_sgd_averages_one_gradient():
  assert all_reduces(averaging_sgd()) == ([GRADIENT], [], [])


@pytest.mark.parametrize(
  ('name', 'sync'),
  [(name, x) for name in problem.METHODS for x in problem.settings(name)],
)
def test_methods_average_what_the_documentation_says(name, sync):
  found = all_reduces(problem.over_axis(name, sync=sync))
  said = documented()[name][sync]
  if said in IN_PIECES:
    found = (sum(found[0]), *found[1:])
    assert found == (IN_PIECES[said], [], [])
  else:
    assert found == MEANING[said]


@pytest.mark.parametrize(
  'name', ['sam', 'asam', 'gsam', 'ss_sam', 'k_sam', 'subset_sam']
)
def test_local_ascent_is_documented_to_be_free(name):
  assert documented()[name][False] == 'none'


def test_every_ascent_step_is_averaged_if_one_is():
  local, synced = (
    all_reduces(problem.over_axis('sam in steps', sync=x))
    for x in (False, True)
  )
  assert local == MEANING['none']
  assert synced == ([GRADIENT, GRADIENT, WITH_INFO], [], [])
