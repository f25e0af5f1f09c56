"""Generates the tables of methods and components, and the verdicts.

`python docs/tables.py` rewrites each block between the lines
`<!-- generated: NAME -->` and `<!-- end -->`. With `--check` it changes
nothing, prints the files that differ and exits with 1 if there are any.
"""

import argparse
import functools
import inspect
import pathlib
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

import optax

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from benchmarks import rows, speed_table, speed_targets
from benchmarks.evidence import advice, analysis
from optax_sam import (
  descents,
  perturbations,
  policies,
  selections,
)
from optax_sam.catalog import GROUPS, METHODS

ROOT = pathlib.Path(__file__).parents[1]
PAGES = (
  'README.md',
  'benchmarks/README.md',
  'docs/conventions.md',
)
_BLOCK = re.compile(
  r'(<!-- generated: ([\w ]+) -->\n).*?(<!-- end -->)', re.DOTALL
)
# Relative to the base optimizer.
_PLACEMENTS = {
  'chain': 'before',
  'after': 'after',
  'wraps': 'wraps',
  'replaces': 'replaces',
  'loss': 'auxiliary loss',
  'outside': 'outside of the chain',
  'adapters': 'low-rank adapters',
}
# Groups with separate tables.
_OPTIMIZERS = 'wraps or replaces the optimizer'
_NOISE = 'noise and averages'
_LOSSES = 'auxiliary losses'
_OWN_TABLES = (_OPTIMIZERS, _NOISE, _LOSSES)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
  head = tuple(head)
  lines = [f'| {" | ".join(line)} |' for line in (head, *rows)]
  lines.insert(1, '|---' * len(head) + '|')
  return '\n'.join(lines).replace('|  |', '| |')


def _code(names: Iterable[str]) -> str:
  return ', '.join(f'`{name}`' for name in names)


def _of_group(group: str) -> str:
  rows = [
    (
      f'`{method.name}`',
      method.title,
      method.gradients,
      method.state,
      f'[{method.paper}]({method.paper.link})',
    )
    for method in METHODS.values()
    if method.group == group
  ]
  head = 'method', 'name in the paper', 'gradients per step', 'state', 'paper'
  return _table(head, rows)


def _methods() -> str:
  return '\n\n'.join(
    f'{description}\n\n{_of_group(group)}'
    for group, description in GROUPS.items()
    if group not in _OWN_TABLES
  )


def _all_methods() -> str:
  """One row for each placement and cost; methods link to their papers."""
  rows: dict[tuple[str, str], list[str]] = {}
  for method in METHODS.values():
    row = rows.setdefault((_PLACEMENTS[method.place], method.gradients), [])
    row.append(f'[`{method.name}`]({method.paper.link})')
  return _table(
    ('placement', 'gradients per step', 'methods'),
    ((*key, ', '.join(methods)) for key, methods in rows.items()),
  )


def _arguments() -> str:
  def names(needs: str) -> str:
    return _code(
      method.name
      for method in METHODS.values()
      if method.needs == needs and method.is_transformation
    )

  rows = (
    (
      '`value_fn`',
      'parameters to scalar loss',
      f'all methods except those of the third row and {names("")}',
    ),
    (
      '`grad_fn`',
      'parameters to gradient, or to (loss, gradient)',
      (
        'alternative to `value_fn` if you compute gradients yourself (loss '
        f'scaling, accumulation); {names("loss")} also need the loss'
      ),
    ),
    (
      '`per_example_value_fn`, `batch`',
      'parameters and a batch to losses, shape (B,); the batch',
      names('examples'),
    ),
    (
      '`losses`',
      'the losses at the unperturbed parameters, shape (B,)',
      'optional; saves `esam` a forward pass that XLA often fails to merge',
    ),
  )
  return _table(('argument', 'meaning', 'needed by'), rows)


def _components() -> str:
  def members(module: Any, kind: type) -> str:
    functions = {
      name: member
      for name, member in inspect.getmembers(module, inspect.isfunction)
      if name in module.__all__
    }
    return _code(
      name
      for name, function in functions.items()
      if inspect.isclass(made := inspect.signature(function).return_annotation)
      and issubclass(made, kind)
    )

  rows = (
    (
      'perturbation',
      'in which direction, and how far, are the weights perturbed?',
      members(perturbations, optax.GradientTransformation),
    ),
    (
      'policy',
      'does this step take an ascent step?',
      members(policies, policies.Policy),
    ),
    (
      'combination rule (`descents`)',
      'how are both gradients combined?',
      members(descents, descents.Descent),
    ),
    (
      'batch selection (`selections`)',
      'over which examples are the gradients taken?',
      members(selections, selections.Selection),
    ),
  )
  return _table(('component', 'question', 'members'), rows)


def _use_when() -> str:
  return _table(
    ('method', 'use it when', 'unverified'),
    (
      (f'`{method.name}`', method.use_when, method.unverified)
      for method in METHODS.values()
    ),
  )


def _collectives() -> str:
  others = ('none', '1 a step')
  rows = [
    (f'`{method.name}`', *method.collectives)
    for method in METHODS.values()
    if method.is_transformation
    and method.place != 'after'
    and method.collectives != others
  ]
  rows.append(('all others', *others))
  head = 'method', '`sync_ascent=False`', '`sync_ascent=True`'
  return _table(head, rows)


def _measured() -> list[speed_table.Entry]:
  return speed_table.read(ROOT / 'benchmarks' / 'results' / 'speed.csv')


def _speed_machine() -> str:
  """Date, hardware and versions of the measurement."""
  text = (ROOT / 'benchmarks' / 'results' / 'speed.md').read_text('utf-8')
  return text.splitlines()[2] + '.'


def _speed() -> str:
  """Times on the larger network of each kind."""
  names = [(row.group, row.name) for row in rows.rows()]
  networks = [f'{kind}, large' for kind in ('dense', 'conv', 'transformer')]
  return speed_table.overview(_measured(), names, networks).strip()


@functools.cache
def _runs() -> analysis.AllRuns:
  return analysis.load(ROOT / 'benchmarks' / 'results' / 'evidence')


BLOCKS: dict[str, Callable[[], str]] = {
  'all methods': _all_methods,
  'methods': _methods,
  'optimizers': lambda: _of_group(_OPTIMIZERS),
  'losses': lambda: _of_group(_LOSSES),
  'noise and averages': lambda: _of_group(_NOISE),
  'arguments': _arguments,
  'components': _components,
  'use when': _use_when,
  'collectives': _collectives,
  'speed': _speed,
  'speed machine': _speed_machine,
  'speed targets': lambda: speed_targets.table(_measured()),
  'which method': lambda: advice.which_method(_runs()),
  'verdicts': lambda: advice.verdicts(_runs()),
}


def generate() -> dict[pathlib.Path, tuple[str, str]]:
  """Returns the present and the generated text of each page.

  Raises:
    ValueError: if a block is unknown.
  """
  pages = {}

  def block(found: re.Match[str]) -> str:
    start, name, end = found.groups()
    if name not in BLOCKS:
      msg = f'unknown block {name!r}; the blocks are {", ".join(BLOCKS)}'
      raise ValueError(msg)
    return f'{start}\n{BLOCKS[name]()}\n\n{end}'

  for page in PAGES:
    path = ROOT / page
    text = path.read_text(encoding='utf-8')
    pages[path] = text, _BLOCK.sub(block, text)
  return pages


def differing() -> list[str]:
  """Returns the names of the pages that `generate` would change."""
  return [
    str(path.relative_to(ROOT))
    for path, (present, generated) in generate().items()
    if present != generated
  ]


def main() -> None:
  """Rewrites the pages, or checks them."""
  parser = argparse.ArgumentParser(description='Generates tables of methods.')
  parser.add_argument('--check', action='store_true', help='change nothing')
  if parser.parse_args().check:
    names = differing()
    if names:
      sys.exit(f'{", ".join(names)}: differs from the catalog: run make tables')
    return
  for path, (present, generated) in generate().items():
    if present != generated:
      path.write_text(generated, encoding='utf-8')


if __name__ == '__main__':
  main()
