"""The command `methods`: lists methods, or describes some."""

import inspect
import json
import re
import textwrap
from typing import Any

from rich.console import Console

from optax_sam import catalog
from optax_sam.train.commands import plain_text, progress
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
_ARGUMENTS = re.compile(r'^Args:\n((?:(?:  .*)?\n)+)', re.MULTILINE)
_ENTRY = re.compile(r'^  (\w+(?:, \w+)*): (.*(?:\n    .*)*)', re.MULTILINE)


def run(config: configs.MethodsConfig, console: Console) -> None:
  """Prints the list of methods, or a description of those that are named."""
  names = [
    build.canonical_name(name, 'sam', 'method')
    for text in config.names
    for name in text.split(',')
  ]
  if config.json:
    text = json.dumps([_facts(name) for name in names or METHODS], indent=2)
  elif names:
    text = '\n\n\n'.join(map(_describe, names))
  else:
    text = _list()
  progress.say(console, text)


def _facts(name: str) -> dict[str, Any]:
  """Returns what is known of a method, ready for JSON."""
  method, row = METHODS[name], METHODS[name].row
  documentation = inspect.getdoc(row.function) or ''
  factory = getattr(method.factory, 'func', method.factory)  # if partial
  meanings: dict[str, str] = {}
  for source in (inspect.getdoc(factory) or '', documentation):
    section = _ARGUMENTS.search(f'{source}\n')
    for entry in _ENTRY.finditer(section[1] if section else ''):
      meaning = plain_text.paragraphs(entry[2], 10**6)
      meanings |= dict.fromkeys(entry[1].split(', '), meaning)
  rule = documentation.split('\nArgs:')[0].strip()
  rule = plain_text.paragraphs(rule, _WIDTH)
  return {
    'name': name,
    'title': row.title,
    'group': row.group,
    'summary': rule.split('\n')[0],
    'use_when': row.use_when,
    'gradients': _plain(row.gradients),
    'state': _plain(row.state),
    'paper': str(row.paper),
    'address': row.paper.link,
    'rule': rule,
    'settings': {
      key: {
        'default': x if isinstance(x, int | float | str | None) else str(x),
        'meaning': meanings.get(key, ''),
      }
      for key, x in build.complete_settings(name, {}, None).items()
    },
    'unverified': _plain(row.unverified),
  }


def _describe(name: str) -> str:
  """Returns a description of a method in plain text."""
  known = _facts(name)
  lines = [f'{known["title"]} ({name})', '', known['rule'], '', 'Settings']
  for key, setting in known['settings'].items():
    lines.append(f'  --set {name}.{key}={setting["default"]}')
    indent = {'initial_indent': 6 * ' ', 'subsequent_indent': 6 * ' '}
    lines += textwrap.wrap(setting['meaning'], _WIDTH, **indent)
  lines += ['' if known['settings'] else '  none\n']
  known['reference'] = f'{known["paper"]}, {known["address"]}'
  for title, key in (
    ('Gradients a step', 'gradients'),
    ('State', 'state'),
    ('Use it when', 'use_when'),
    ('Unverified', 'unverified'),
    ('Paper', 'reference'),
  ):
    if known[key]:
      text = f'{title}: {known[key]}'
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
        lines += [
          f'  {name:<22}{_plain(row.gradients):<27}{paper}',
          f'      when {row.use_when}',
        ]
  return '\n'.join([*lines, '', *textwrap.wrap(_LEGEND, _WIDTH)])


def _plain(text: str) -> str:
  return text.replace('`', '')
