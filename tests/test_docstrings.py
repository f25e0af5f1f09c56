"""What every public name says about itself."""

import doctest
import inspect
import re

import optax
import pytest

import optax_sam
from optax_sam import (
  descents,
  landscape,
  perturbations,
  policies,
  selections,
  sharpness,
)
from optax_sam.catalog import METHODS

_VOCABULARIES = (perturbations, policies, descents, selections)
# What a word of a vocabulary is a function to; others only serve the methods.
_WORDS = (
  optax.GradientTransformation,
  optax.GradientTransformationExtraArgs,
  policies.Policy,
  descents.Descent,
  selections.Selection,
)


def _own(module):
  """Returns the public names of a module that has no list of them."""
  return [
    name
    for name, value in vars(module).items()
    if not name.startswith('_')
    and getattr(value, '__module__', None) == module.__name__
  ]


def _public():
  modules = {module.__name__: module for module in _VOCABULARIES}
  modules |= {'optax_sam': optax_sam, 'optax_sam.sharpness': sharpness}
  modules |= {'optax_sam.landscape': landscape}
  try:
    from optax_sam import flax

    modules['optax_sam.flax'] = flax
  except ImportError:
    pass
  for path, module in modules.items():
    for name in getattr(module, '__all__', None) or _own(module):
      yield f'{path}.{name}', getattr(module, name)


_PUBLIC = dict(_public())
_FUNCTIONS = {
  path: value
  for path, value in _PUBLIC.items()
  if inspect.isfunction(value)
  and (
    not path.startswith('optax_sam.selections.')
    or value.__annotations__['return'] in _WORDS
  )
}
_TUPLES = {
  path: value for path, value in _PUBLIC.items() if hasattr(value, '_fields')
}
_METHODS = {f'optax_sam.{name}': row.function for name, row in METHODS.items()}


def _is_component(path):
  """Whether it is a component of a method, which has the example of both."""
  in_family = _FUNCTIONS[path].__module__.startswith('optax_sam.methods.')
  return in_family and path.count('.') > 1


def _section(text, title):
  """Returns the indented lines below a title."""
  found = re.search(rf'^{title}:\n((?: +.*\n?|\n)+)', text, re.MULTILINE)
  return found.group(1) if found else ''


def _entries(text, title):
  """Returns the names that a section explains, in order."""
  pattern = re.compile(r'^  \*{0,2}(\w+(?:, \w+)*): \S', re.MULTILINE)
  entries = pattern.findall(_section(text, title))
  return [name for entry in entries for name in entry.split(', ')]


def test_nothing_public_is_left_out():
  assert 'optax_sam.perturbations.scale_to_radius' in _FUNCTIONS
  assert 'optax_sam.selections.top_k' in _FUNCTIONS
  assert 'optax_sam.policies.SharpGradientsState' in _TUPLES


@pytest.mark.parametrize('path', _PUBLIC)
def test_everything_public_is_described(path):
  first = (inspect.getdoc(_PUBLIC[path]) or '').split('\n')[0]
  assert re.fullmatch(r'\S.+[.?:]', first)


@pytest.mark.parametrize('path', _FUNCTIONS)
def test_functions_explain_their_arguments(path):
  text = inspect.getdoc(_FUNCTIONS[path])
  parameters = list(inspect.signature(_FUNCTIONS[path]).parameters)
  explained = _entries(text, 'Args')
  if _is_component(path):  # may refer to its method for the others
    assert set(explained) <= set(parameters)
  else:
    assert explained == parameters
    assert _section(text, 'Returns')


@pytest.mark.parametrize(
  'path', [path for path in _FUNCTIONS if not _is_component(path)]
)
def test_functions_show_what_they_do(path):
  text = inspect.getdoc(_FUNCTIONS[path])
  examples = doctest.DocTestParser().get_examples(text)
  assert any(example.want for example in examples)


@pytest.mark.parametrize('path', _TUPLES)
def test_tuples_explain_their_fields(path):
  text, fields = inspect.getdoc(_TUPLES[path]), list(_TUPLES[path]._fields)
  explained = _entries(text, 'Attributes')
  # A sentence may explain a few fields.
  named = [field for field in fields if re.search(rf'`{field}[`(]', text)]
  assert fields in (explained, named)


@pytest.mark.parametrize('path', _METHODS)
def test_methods_state_their_rule_and_their_paper(path):
  text = inspect.getdoc(_METHODS[path])
  assert re.search(r'::\n\n +\S', text)
  assert 'arxiv.org/abs/' in _section(text, 'References')
