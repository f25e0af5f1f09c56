"""Counts the collectives of compiled functions.

They are counted after compilation, because XLA merges independent all-reduces,
such as those of the leaves of a tree. So bytes are those of all shapes in a
result.
"""

import math
import re

GRADIENT = 4 * 49  # bytes of a gradient of the problem
INFO = 4 * 2  # ascent_norm and perturbed_loss
WITH_INFO = GRADIENT + INFO
# Maps the text of the catalog to bytes of the all-reduces: of every step, in a
# branch of a conditional, in a loop.
MEANING = {
  'none': ([WITH_INFO], [], []),
  'none, no info': ([GRADIENT], [], []),
  'none, no norm': ([GRADIENT + 4], [], []),
  '1 a step': ([GRADIENT, WITH_INFO], [], []),
  '1 a step, joined': ([GRADIENT + WITH_INFO], [], []),
  '1 a step, no norm': ([2 * GRADIENT + 4], [], []),
  '2 a step, 1 joined': ([GRADIENT, GRADIENT + WITH_INFO], [], []),
  # Two ascent steps, one batch.
  'steps - 1, joined': ([GRADIENT + WITH_INFO], [], []),
  '1 a product': ([WITH_INFO], [4], [GRADIENT]),
  '1 a step, 1 a product': ([GRADIENT, WITH_INFO], [4], [GRADIENT]),
  # A step without ascent averages only the unperturbed gradient, and no info.
  '1 an ascent step': ([GRADIENT], [WITH_INFO], []),
  # The last half of the leaves.
  '1 of the chosen leaves a step': ([4 * 9, WITH_INFO], [], []),
  '1 a refresh': ([WITH_INFO], [GRADIENT], []),
  '1 a step, 1 a refresh': ([GRADIENT, WITH_INFO], [GRADIENT], []),
  # Eight examples in parts of three: the remainder is outside of the loop.
  '1 a part': ([GRADIENT, WITH_INFO], [], [GRADIENT]),
}
# XLA splits these, so the bytes are sums over a step: the unperturbed gradient,
# and gradients and losses of two samples; the gradients of two steps.
SPLIT = {
  '1 a sample': GRADIENT + 2 * (GRADIENT + 4),
  # Three perturbations, and the direction.
  '1 a perturbation': 4 * GRADIENT + 3 * 4,
  '1 a step, split': GRADIENT + WITH_INFO,
  '1 a step, without info': 2 * GRADIENT + INFO,
  'steps a step': 2 * GRADIENT + WITH_INFO,
}
COLLECTIVE = re.compile(
  r' = (?P<result>.*?) (?P<name>all-gather|all-reduce|all-to-all|'
  r'collective-broadcast|collective-permute|ragged-all-to-all|reduce-scatter)'
  r'(?:-start)?\('
)


def assert_meant(found, said):
  """Raises unless all-reduces agree with the text of the catalog."""
  if said in SPLIT:
    assert (sum(found[0]), *found[1:]) == (SPLIT[said], [], [])
  else:
    assert found == MEANING[said]


def all_reduces(text):
  """Returns the bytes of all all-reduces of an HLO module, by location.

  Raises if there are other collectives.
  """
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
      found[where].append(_bytes(operation['result']))
  return tuple(sorted(sizes) for sizes in found.values())


def sizes(text):
  """Returns (name, number of entries of the result) of all collectives."""
  found = []
  for match in COLLECTIVE.finditer(text):
    shapes = re.findall(r'\[([\d,]*)\]', match['result'])
    found.append((match['name'], max(map(_size, shapes))))
  return found


def _size(shape):
  return math.prod(map(int, filter(None, shape.split(','))))


def _bytes(result):
  """Returns the bytes of a shape, or of a tuple of shapes."""
  shapes = re.findall(r'(\w+)\[([\d,]*)\]', result)
  assert {dtype for dtype, _ in shapes} == {'f32'}, result
  return 4 * sum(_size(shape) for _, shape in shapes)
