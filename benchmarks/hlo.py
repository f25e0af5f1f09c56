"""Structure of a compiled function, from the text of its HLO.

XLA reports operations and memory. Collectives, and operations inside
conditionals, are only in the text.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

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
_PRODUCTS = ('convolution', 'dot')
_LIBRARY_PRODUCTS = re.compile(r'custom_call_target="[^"]*(?:conv|matmul|dot)')

_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?[\w.\-]+ = (.*)$')
_CALLED = re.compile(
  r'\b(?:calls|to_apply|body|condition|branch_computations|called_computations'
  r'|true_computation|false_computation)=(\{[^}]*\}|%?[\w.\-]+)'
)
_ARRAY = re.compile(r'\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]')
_OPCODE = re.compile(r'\s*([\w\-]+)\(')


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation.

  Attributes:
    opcode: name of the operation.
    arrays: bytes of each array of its result.
    called: names of the computations that it calls.
    text: the rest of the line.
  """

  opcode: str
  arrays: tuple[int, ...]
  called: tuple[str, ...]
  text: str


@dataclasses.dataclass(frozen=True)
class Traffic:
  """Collectives of one kind, or of several.

  Attributes:
    count: number of collectives.
    bytes: bytes of their results on one device.
  """

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
    loops: number of loops that contain a product or a collective.
  """

  collectives: dict[str, Traffic]
  inside: Traffic
  conditionals: int
  products: int
  products_inside: int
  loops: int

  @property
  def total(self) -> Traffic:
    """All collectives together."""
    return sum(self.collectives.values(), Traffic())


def structure(text: str) -> Structure:
  """Returns the structure of a compiled function.

  Args:
    text: text of an optimized module, from `compiled.as_text()`.

  Raises:
    ValueError: if the text is not an optimized module.
  """
  computations, entry = parse(text)
  everything = reachable(computations, [entry])
  instructions = [i for name in everything for i in computations[name]]
  conditionals = [i for i in instructions if i.opcode == 'conditional']
  branches = [name for i in conditionals for name in i.called]
  within = reachable(computations, branches)
  inside = [i for name in within for i in computations[name]]
  kinds: collections.defaultdict[str, Traffic] = collections.defaultdict(
    Traffic
  )
  for kind, traffic in _collectives(instructions):
    kinds[kind] += traffic
  return Structure(
    collectives={kind: kinds[kind] for kind in COLLECTIVES if kind in kinds},
    inside=sum((t for _, t in _collectives(inside)), Traffic()),
    conditionals=len(conditionals),
    products=sum(map(_is_product, instructions)),
    products_inside=sum(map(_is_product, inside)),
    loops=sum(_is_busy_loop(computations, i) for i in instructions),
  )


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
  """Returns the computations of a module by name, and the name of the first.

  Raises:
    ValueError: if there is no entry computation.
  """
  computations: dict[str, list[Instruction]] = {}
  entry, current = None, None
  for line in text.splitlines():
    if line.startswith('}'):
      current = None
    elif line and not line[0].isspace():
      header = _header(line)
      if header is not None:
        name, is_entry = header
        current = computations.setdefault(name, [])
        entry = name if is_entry else entry
    elif current is not None and (found := _INSTRUCTION.match(line)):
      current.append(_instruction(found[1]))
  if entry is None:
    msg = 'text must be of a compiled module, with an ENTRY computation'
    raise ValueError(msg)
  return computations, entry


def reachable(
  computations: dict[str, list[Instruction]], roots: list[str]
) -> list[str]:
  """Returns some computations and all computations that they call."""
  found: dict[str, None] = {}
  left = list(roots)
  while left:
    name = left.pop()
    if name in found or name not in computations:
      continue
    found[name] = None
    left += [n for i in computations[name] for n in i.called]
  return list(found)


def _header(line: str) -> tuple[str, bool] | None:
  """Returns the name of the computation that starts at a line, if any."""
  if not line.rstrip().endswith('{') or line.startswith('HloModule'):
    return None
  is_entry = line.startswith('ENTRY ')
  name = line.removeprefix('ENTRY ').lstrip('%')
  found = re.match(r'[\w.\-]+', name)
  return (found[0], is_entry) if found else None


def _instruction(text: str) -> Instruction:
  """Parses type, opcode, operands and attributes after the name."""
  end = _end_of_type(text)
  arrays = tuple(
    math.prod(int(n) for n in shape.split(',') if n) * _size(dtype)
    for dtype, shape in _ARRAY.findall(text[:end])
  )
  opcode = _OPCODE.match(text, end)
  # Metadata may contain any text, including names of computations.
  rest = text[end:].partition(', metadata=')[0]
  called = tuple(
    name.strip().lstrip('%')
    for group in _CALLED.findall(rest)
    for name in group.strip('{}').split(',')
  )
  return Instruction(opcode[1] if opcode else '', arrays, called, rest)


def _end_of_type(text: str) -> int:
  """Returns the end of a type; tuples and TPU layouts have parentheses."""
  depth = 0
  for position, character in enumerate(text):
    if character in '({[':
      depth += 1
    elif character in ')}]':
      depth -= 1
    elif character == ' ' and depth == 0:
      return position
  return len(text)


def _size(dtype: str) -> int:
  """Returns the bytes of an entry, at least one."""
  if dtype == 'pred':
    return 1
  bits = re.search(r'\d+', dtype)
  return max(1, int(bits[0]) // 8) if bits else 0


def _collectives(
  instructions: list[Instruction],
) -> Iterator[tuple[str, Traffic]]:
  for instruction in instructions:
    kind = instruction.opcode.removesuffix('-start')
    if kind not in COLLECTIVES:
      continue
    arrays = instruction.arrays
    starts = instruction.opcode.endswith('-start')
    if starts and kind in ('all-gather', 'collective-permute'):
      arrays = arrays[1:2]  # operand, result, and perhaps a semaphore
    elif kind == 'send':
      arrays = arrays[:1]  # the rest are semaphores
    yield kind, Traffic(1, sum(arrays))


def _is_product(instruction: Instruction) -> bool:
  if instruction.opcode == 'custom-call':
    return bool(_LIBRARY_PRODUCTS.search(instruction.text))
  return instruction.opcode in _PRODUCTS


def _is_busy_loop(
  computations: dict[str, list[Instruction]], instruction: Instruction
) -> bool:
  if instruction.opcode != 'while':
    return False
  inside = [
    i
    for name in reachable(computations, list(instruction.called))
    for i in computations[name]
  ]
  return any(map(_is_product, inside)) or any(_collectives(inside))
