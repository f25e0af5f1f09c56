"""Operations of a compiled function, with loops as often as they run.

XLA's cost analysis counts the body of a loop once. The text of the compiled
function has the number of iterations of each loop. It also has each body, which
is analyzed as if it were the whole function.
"""

import re
from typing import Any

import jax
from jaxlib import _hlo, _jax

# May contain any text; that of one computation refers to tables of the whole.
_METADATA = re.compile(r', metadata=\{(?:[^{}"]|"(?:\\.|[^"\\])*")*\}')
_NAME = re.compile(r'[\w.\-]+')
_HEADER = re.compile(r'(?:ENTRY )?%?([\w.\-]+) \(.*\{$')
_LOOP = re.compile(
  r' while\(.*\bbody=%?(?P<body>[\w.\-]+).*?'
  r'(?:"known_trip_count":\{"n":"(?P<count>\d+)"\}|$)'
)
_CALL = re.compile(
  r' (?:call|async-start)\(.*\b(?:to_apply|calls)=%?([\w.\-]+)'
)
_BRANCHES = re.compile(
  r' conditional\(.*?(?:branch_computations=\{([^}]*)\}'
  r'|true_computation=%?([\w.\-]+), false_computation=%?([\w.\-]+))'
)


def count(compiled: Any) -> float:
  """Returns the floating-point operations of a compiled function.

  As in XLA, conditionals count as their most expensive branch, and the body of
  a loop counts once if XLA does not determine the number of iterations.

  Args:
    compiled: result of `jax.jit(f).lower(...).compile()`.
  """
  counter = _Counter(compiled.as_text())
  return compiled.cost_analysis()['flops'] + counter.missing(counter.entry)


class _Counter:
  """The computations of one compiled function."""

  def __init__(self, text: str) -> None:
    self._lines: dict[str, list[str]] = {}
    self.entry = ''
    for line in text.splitlines():
      if found := _HEADER.match(line):
        lines = self._lines.setdefault(found[1], [])
        self.entry = found[1] if line.startswith('ENTRY') else self.entry
      if self._lines:
        lines.append(_METADATA.sub('', line))

  def missing(self, name: str) -> float:
    """Returns the operations of a computation that XLA does not count."""
    return sum(self._missing(line) for line in self._lines[name])

  def _missing(self, line: str) -> float:
    if loop := _LOOP.search(line):
      once = self._counted(loop['body'])
      whole = once + self.missing(loop['body'])
      return int(loop['count'] or 1) * whole - once
    if found := _BRANCHES.search(line):
      joined = ', '.join(filter(None, found.groups()))
      names = [name.lstrip('%') for name in joined.split(', ')]
      once = [self._counted(name) for name in names]
      whole = [
        x + self.missing(name) for x, name in zip(once, names, strict=True)
      ]
      return max(whole) - max(once)
    if found := _CALL.search(line):
      return self.missing(found[1])
    return 0.0

  def _counted(self, name: str) -> float:
    """Returns the operations of a computation, with loops counted once."""
    parts = ['HloModule part, is_scheduled=true']
    used = self._used_by(name)
    # In their order, since a computation is defined before its use.
    for other, lines in self._lines.items():
      if other not in used:
        continue
      first, *rest = lines
      first = first.removeprefix('ENTRY ')
      parts += ['', f'ENTRY {first}' if other == name else first, *rest]
    module = _hlo.hlo_module_from_text('\n'.join(parts))
    client = jax.devices()[0].client
    return _jax.hlo_module_cost_analysis(client, module).get('flops', 0.0)

  def _used_by(self, name: str) -> set[str]:
    """Returns a computation and all that it refers to."""
    found, left = set(), [name]
    while left:
      found.add(new := left.pop())
      for line in self._lines[new]:
        names = set(_NAME.findall(line)).intersection(self._lines)
        left += names - found
    return found
