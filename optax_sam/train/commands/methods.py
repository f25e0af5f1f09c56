"""The command `methods`: lists methods, or describes some."""

import inspect
import re
import textwrap
import unicodedata

from rich.console import Console

from optax_sam import catalog
from optax_sam.train.commands import progress
from optax_sam.train.config import configs
from optax_sam.train.optimizers import build
from optax_sam.train.optimizers.registry import METHODS

_WIDTH = 79
_LEGEND = (
  'Gradients are those of a step. s: fraction of the steps that take an ascent '
  'step. 1/3: a forward pass over the batch, to rank the examples. (+ 1/3): a '
  'forward pass for the unperturbed loss. `optax-sam methods NAME` describes a '
  'method.'
)
# Commands that are neither Greek letters nor written as they are named.
_SYMBOLS = {
  'nabla': '∇',
  'leftarrow': '<-',
  'ell': 'l',
  'top': 'T',
  'ldots': '...',
  'le': '<=',
  'ge': '>=',
  'pm': '+-',
  'bmod': ' mod ',
  'lfloor': 'floor(',
  'rfloor': ')',
  'in': ' in ',
  'cdot': '*',
  'quad': '   ',
}
_ACCENTS = {'tilde': '\u0303', 'bar': '\u0304'}
_GROUP = r'\{((?:[^{}]|\{[^{}]*\})*)\}'
_ARGUMENTS = re.compile(r'^Args:\n((?:(?:  .*)?\n)+)', re.MULTILINE)
_ENTRY = re.compile(r'^  (\w+(?:, \w+)*): (.*(?:\n    .*)*)', re.MULTILINE)


def run(config: configs.MethodsConfig, console: Console) -> None:
  """Prints the list of methods, or a description of those that are named."""
  names = [
    build.canonical_name(name, 'sam', 'method')
    for text in config.names
    for name in text.split(',')
  ]
  described = '\n\n\n'.join(map(_describe, names))
  progress.say(console, described or _list())


def _describe(name: str) -> str:
  """Returns a description of a method in plain text."""
  method, row = METHODS[name], METHODS[name].row
  documentation = inspect.getdoc(row.function) or ''
  factory = getattr(method.factory, 'func', method.factory)  # if partial
  meanings: dict[str, str] = {}
  for source in (inspect.getdoc(factory) or '', documentation):
    section = _ARGUMENTS.search(f'{source}\n')
    for entry in _ENTRY.finditer(section[1] if section else ''):
      meanings |= dict.fromkeys(entry[1].split(', '), entry[2])
  rule = paragraphs(documentation.split('\nArgs:')[0].strip(), _WIDTH)
  lines = [f'{row.title} ({name})', '', rule, '', 'Settings']
  settings = build.complete_settings(name, {}, None)
  for key, default in settings.items():
    lines.append(f'  --set {name}.{key}={default}')
    meaning = paragraphs(meanings.get(key, ''), 10**6)
    indent = {'initial_indent': 6 * ' ', 'subsequent_indent': 6 * ' '}
    lines += textwrap.wrap(meaning, _WIDTH, **indent)
  lines += ['' if settings else '  none\n']
  for title, text in (
    ('Gradients a step', row.gradients),
    ('State', row.state),
    ('Use it when', row.use_when),
    ('Unverified', row.unverified),
    ('Paper', f'{row.paper}, {row.paper.link}'),
  ):
    if text:
      text = _plain(f'{title}: {text}')
      lines += textwrap.wrap(text, _WIDTH, subsequent_indent='  ')
  return '\n'.join(lines)


def _list() -> str:
  """Returns the methods by group, two lines for each, in 80 columns."""
  lines = [f'  {"method":<22}{"gradients":<27}paper']
  for group, text in catalog.GROUPS.items():
    lines += ['', *textwrap.wrap(_plain(text), _WIDTH), '']
    for name, method in METHODS.items():
      row, paper = method.row, str(method.row.paper)
      if row.group == group:
        if len(paper) > 28:
          authors, _, year = paper.rpartition(', ')
          paper = f'{authors.split(" and ")[0]} et al., {year}'
        start = f'  {name:<21} {_plain(row.gradients)}'
        lines += [f'{start:<51}{paper}', f'      when {row.use_when}']
  return '\n'.join([*lines, '', *textwrap.wrap(_LEGEND, _WIDTH)])


def _plain(text: str) -> str:
  return text.replace('`', '')


def formula(latex: str) -> str:
  """Returns a formula without commands of LaTeX, its rows on own lines."""
  text = re.sub(r'\\(begin|end)\{[^}]*\}', '', latex)
  text = re.sub(r'\s*\n\s*', ' ', text).replace('\\\\', '\n').replace('&', '')
  text = text.replace('\\|', '‖').replace('\\,', ' ')
  for _ in range(3):  # they may be nested
    text = re.sub(rf'\\t?frac{_GROUP}{_GROUP}', r'(\1)/(\2)', text)
    text = re.sub(rf'\\t?binom{_GROUP}{_GROUP}', r'binom(\1, \2)', text)
    text = re.sub(rf'\\sqrt{_GROUP}', r'sqrt(\1)', text)
    text = re.sub(rf'\\(?:text|operatorname){_GROUP}', r'\1', text)
  text = re.sub(
    r'\\(tilde|bar)\s*\{?(\w)\}?', lambda x: x[2] + _ACCENTS[x[1]], text
  )
  text = re.sub(r'\\([A-Za-z]+)', lambda x: _symbol(x[1]), text)
  text = re.sub(r' *(<-|<=|>=) *', r' \1 ', text)
  text = re.sub(r'\^\{?2\}?(?![\d}])', '²', text)
  text = re.sub(r'([_^])\{(\w+)\}', r'\1\2', text)
  text = re.sub(r'([_^])\{([^{}]*)\}', r'\1(\2)', text)
  text = text.replace('{', '').replace('}', '')
  rows = [
    re.sub(r'(?<=\S) {2,3}(?! )', ' ', x.strip()) for x in text.split('\n')
  ]
  return '\n'.join(row for row in rows if row)


def _symbol(name: str) -> str:
  case = 'SMALL' if name.islower() else 'CAPITAL'
  spelled = name.upper().replace('LAMBDA', 'LAMDA')
  try:
    return unicodedata.lookup(f'GREEK {case} LETTER {spelled}')
  except KeyError:
    return _SYMBOLS.get(name, name)


def paragraphs(docstring: str, width: int = 79) -> str:
  """Returns a docstring with wrapped paragraphs and indented formulas."""
  text = re.sub(r':math:`([^`]+)`', lambda x: formula(x[1]), docstring)
  text = re.sub(r'`([^`<]+?)\s*<(https://[^>]+)>`_', r'\1 (\2)', text)
  blocks = []
  for block in re.split(r'\n{2,}', text):
    if block.startswith('.. math::'):
      inside = formula(block.removeprefix('.. math::'))
      blocks.append(textwrap.indent(inside, '  '))
    elif block.startswith('  '):  # code
      blocks.append(block)
    else:
      plain = re.sub(r'\*\*|`', '', block).replace('::', ':')
      blocks.append(textwrap.fill(' '.join(plain.split()), width))
  return '\n\n'.join(blocks)
