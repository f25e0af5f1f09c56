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
  """Prints the list of methods, or a description of those that are named.

  Raises:
    ValueError: if a name is unknown.
  """
  names = [
    build.canonical_name(name, 'sam', 'method')
    for text in config.names
    for name in text.split(',')
  ]
  if config.json:
    text = json.dumps([facts(name) for name in names or METHODS], indent=2)
  elif names:
    text = '\n\n\n'.join(map(describe, names))
  else:
    text = _list()
  progress.say(console, text)


def facts(name: str) -> dict[str, Any]:
  """Returns what is known of a method, ready for JSON."""
  row = METHODS[name].row
  rule, arguments = _docstring(name)
  settings = build.complete_settings(name, {}, None)
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
        'default': _as_json(settings.get(key)),
        'meaning': arguments.get(key, ''),
      }
      for key in build.settable(name)
    },
    'unverified': _plain(row.unverified),
  }


def describe(name: str) -> str:
  """Returns a description of a method in plain text."""
  known = facts(name)
  lines = [f'{known["title"]} ({name})', '', known['rule'], '', 'Settings']
  for key, setting in known['settings'].items():
    lines.append(f'  --set {name}.{key}={setting["default"]}')
    indent = {'initial_indent': 6 * ' ', 'subsequent_indent': 6 * ' '}
    lines += textwrap.wrap(setting['meaning'], _WIDTH, **indent)
  lines += ['' if known['settings'] else '  none\n']
  for title, text in (
    ('Gradients a step', known['gradients']),
    ('State', known['state']),
    ('Use it when', known['use_when']),
    ('Unverified', known['unverified']),
    ('Paper', f'{known["paper"]}, {known["address"]}'),
  ):
    if text:
      lines += textwrap.wrap(f'{title}: {text}', _WIDTH, subsequent_indent='  ')
  return '\n'.join(lines)


def _list() -> str:
  """Returns the methods by group, two lines for each, in 80 columns."""
  lines = []
  for group, text in catalog.GROUPS.items():
    lines += ['', *textwrap.wrap(_plain(text), _WIDTH), '']
    for name, method in METHODS.items():
      row = method.row
      if row.group == group:
        gradients = _plain(row.gradients)
        lines += [
          f'  {name:<22}{gradients:<27}{_short(str(row.paper))}',
          f'      when {row.use_when}',
        ]
  header = f'  {"method":<22}{"gradients":<27}paper'
  return '\n'.join([header, *lines, '', *textwrap.wrap(_LEGEND, _WIDTH)])


def _short(paper: str) -> str:
  """Returns authors and year in 28 columns."""
  authors, _, year = paper.rpartition(', ')
  if len(paper) > 28:
    authors = f'{authors.split(" and ")[0]} et al.'
  return f'{authors}, {year}'


def _docstring(name: str) -> tuple[str, dict[str, str]]:
  """Returns the rule and the meaning of each argument."""
  factory = METHODS[name].factory
  factory = getattr(factory, 'func', factory)  # of a partial function
  text = inspect.getdoc(METHODS[name].row.function) or ''
  rule = text.split('\nArgs:')[0].strip()
  arguments: dict[str, str] = {}
  for source in (inspect.getdoc(factory) or '', text):
    section = _ARGUMENTS.search(f'{source}\n')
    for entry in _ENTRY.finditer(section[1] if section else ''):
      meaning = plain_text.paragraphs(entry[2], 10**6)
      arguments |= dict.fromkeys(entry[1].split(', '), meaning)
  return plain_text.paragraphs(rule, _WIDTH), arguments


def _plain(text: str) -> str:
  return text.replace('`', '')


def _as_json(value: Any) -> Any:
  return value if isinstance(value, int | float | str | None) else str(value)
