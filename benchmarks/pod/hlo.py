"""Structure of a compiled function, from the text of its HLO.

XLA reports operations and memory. Collectives, and operations inside
conditionals, are only in the text.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Iterator

# In the order of the tables.
COLLECTIVES = (
  'all-reduce',
  'all-gather',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
  'send',  # TPU transfers between slices
)
# TPUs compute matrix products as convolutions, CPUs some by library calls.
_PRODUCT = re.compile(
  r'convolution\(|dot\(|custom-call\(.*custom_call_target="[^"]*(conv|matmul|dot)'
)
_COMPUTATION = re.compile(r'(ENTRY )?%?([\w.\-]+) .*\{$')
# Types contain no space before a lower-case name and a parenthesis.
_INSTRUCTION = re.compile(
  r'\s+(?:ROOT )?%?[\w.\-]+ = (?P<type>.*?) (?P<opcode>[a-z][\w\-]*)\('
)
_CALLED = re.compile(
  r'\b(?:calls|to_apply|body|condition|branch_computations|called_computations'
  r'|true_computation|false_computation)=(\{[^}]*\}|%?[\w.\-]+)'
)
_ARRAY = re.compile(r'\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]')


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation.

  Attributes:
    opcode: name of the operation.
    arrays: bytes of each array of its result.
    called: names of the computations that it calls.
    is_product: whether it is a convolution or a matrix product.
  """

  opcode: str
  arrays: tuple[int, ...]
  called: tuple[str, ...]
  is_product: bool


@dataclasses.dataclass(frozen=True)
class Traffic:
  """Number of collectives, and bytes of their results on one device."""

  count: int = 0
  bytes: int = 0

  def __add__(self, other: 'Traffic') -> 'Traffic':
    return Traffic(self.count + other.count, self.bytes + other.bytes)


@dataclasses.dataclass(frozen=True)
class Structure:
  """The structure of a compiled function on one device.

  Operations in a loop are counted once.

  Attributes:
    collectives: collectives by kind, including those inside conditionals.
    inside: all collectives inside conditionals.
    conditionals: number of conditionals.
    products: number of convolutions and matrix products.
    products_inside: number of these inside conditionals.
  """

  collectives: dict[str, Traffic]
  inside: Traffic
  conditionals: int
  products: int
  products_inside: int

  @property
  def total(self) -> Traffic:
    """All collectives together."""
    return sum(self.collectives.values(), Traffic())


def structure(text: str) -> Structure:
  """Returns the structure of a compiled function.

  Args:
    text: text of an optimized module, from `compiled.as_text()`.
  """
  computations, entry = _parse(text)
  everything = list(_reachable(computations, [entry]))
  conditionals = [i for i in everything if i.opcode == 'conditional']
  branches = [name for i in conditionals for name in i.called]
  inside = list(_reachable(computations, branches))
  kinds = collections.defaultdict(Traffic)
  for kind, traffic in _collectives(everything):
    kinds[kind] += traffic
  return Structure(
    collectives={kind: kinds[kind] for kind in COLLECTIVES if kind in kinds},
    inside=sum((traffic for _, traffic in _collectives(inside)), Traffic()),
    conditionals=len(conditionals),
    products=sum(i.is_product for i in everything),
    products_inside=sum(i.is_product for i in inside),
  )


def _parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
  """Returns the computations by name, and the name of the first one to run."""
  computations: dict[str, list[Instruction]] = collections.defaultdict(list)
  entry = current = ''
  for line in text.splitlines():
    if header := _COMPUTATION.match(line):
      current = header[2]
      entry = current if header[1] else entry
    elif found := _INSTRUCTION.match(line):
      computations[current].append(_instruction(found, line))
  if not entry:
    msg = 'text must be of a compiled module, with an ENTRY computation'
    raise ValueError(msg)
  return computations, entry


def _instruction(found: re.Match[str], line: str) -> Instruction:
  arrays = tuple(
    math.prod(int(n) for n in shape.split(',') if n)
    * max(1, int(bits or 8) // 8)
    for _, bits, shape in _ARRAY.findall(found['type'])
  )
  # Metadata may contain any text, including names of computations.
  operation = line[found.start('opcode') :].partition(', metadata=')[0]
  called = tuple(
    name.strip().lstrip('%')
    for group in _CALLED.findall(operation)
    for name in group.strip('{}').split(',')
  )
  is_product = _PRODUCT.match(operation) is not None
  return Instruction(found['opcode'], arrays, called, is_product)


def _reachable(
  computations: dict[str, list[Instruction]], roots: Iterable[str]
) -> Iterator[Instruction]:
  """Yields the instructions of computations and of all that they call."""
  left, seen = list(roots), set()
  while left:
    name = left.pop()
    if name not in seen:
      seen.add(name)
      yield from computations[name]
      left += [called for i in computations[name] for called in i.called]


def _collectives(
  instructions: Iterable[Instruction],
) -> Iterator[tuple[str, Traffic]]:
  for instruction in instructions:
    kind = instruction.opcode.removesuffix('-start')
    arrays = instruction.arrays
    if kind == 'send':
      arrays = arrays[:1]  # the rest are semaphores
    elif instruction.opcode in ('all-gather-start', 'collective-permute-start'):
      arrays = arrays[1:2]  # operand, result, and perhaps a semaphore
    if kind in COLLECTIVES:
      yield kind, Traffic(1, sum(arrays))
