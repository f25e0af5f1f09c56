"""Docstrings as plain text: formulas in Unicode, no markup."""

import re
import textwrap
import unicodedata

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
