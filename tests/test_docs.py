"""Every public name is documented and has a docstring."""

import doctest
import importlib
import inspect
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

from optax_sam.catalog import METHODS

DOCS = pathlib.Path(__file__).parents[1] / 'docs'
TEXTS = DOCS / 'methods' / 'texts.toml'
MODULES = (
  'optax_sam',
  'optax_sam.descents',
  'optax_sam.equinox',
  'optax_sam.flax',
  'optax_sam.landscape',
  'optax_sam.lora',
  'optax_sam.perturbations',
  'optax_sam.policies',
  'optax_sam.selections',
  'optax_sam.sharpness',
)
PUBLIC = {
  f'{path}.{name}': getattr(module, name)
  for path in MODULES
  for module in [importlib.import_module(path)]
  for name in module.__all__
  if not inspect.ismodule(getattr(module, name))
}
# Helpers for custom selections, named after their results.
HELPERS = ('check_size', 'largest', 'num_examples')
FUNCTIONS = [
  path
  for path, x in PUBLIC.items()
  if inspect.isfunction(x) and not path.endswith(HELPERS)
]
TUPLES = [path for path, x in PUBLIC.items() if hasattr(x, '_fields')]
# Explained in the docstring of their method.
COMPONENTS = [
  path
  for path in FUNCTIONS
  if path.count('.') > 1
  and PUBLIC[path].__module__.startswith('optax_sam.methods.')
]


def _section(text, title):
  """Returns the indented lines below a title."""
  found = re.search(rf'^{title}:\n((?: +.*\n?|\n)+)', text, re.MULTILINE)
  return found.group(1) if found else ''


def _entries(text, title):
  """Returns the names that a section describes, in order."""
  pattern = re.compile(r'^  \*{0,2}(\w+(?:, \w+)*): \S', re.MULTILINE)
  entries = pattern.findall(_section(text, title))
  return [name for entry in entries for name in entry.split(', ')]


def test_every_public_name_is_on_exactly_one_page():
  pages = [path.read_text() for path in DOCS.rglob('*.md')]
  listed = re.findall(r'^::: (\S+)$', '\n'.join(pages), re.MULTILINE)
  listed = [name for name in listed if 'optax_sam.train.' not in name]
  # The pages of the methods are generated from the catalog and these texts.
  for name, text in tomllib.loads(TEXTS.read_text()).items():
    module = METHODS[name].path.rpartition('.')[0]
    listed += [f'{module}.{x}' for x in (name, *text.get('also', ()))]
  assert sorted(listed) == sorted(PUBLIC)


def test_every_method_has_the_texts_of_its_page():
  texts = tomllib.loads(TEXTS.read_text())
  assert list(texts) == list(METHODS)
  for name, text in texts.items():
    assert set(text) <= {'idea', 'not_when', 'tuning', 'also'}, name
    assert len(re.findall(r'\.(?: |$)', text['idea'])) == 2, name
    assert not text['not_when'].endswith('.'), name


def test_tables_of_methods_are_up_to_date():
  checked = subprocess.run(
    [sys.executable, str(DOCS / 'tables.py'), '--check'],
    capture_output=True,
    text=True,
    check=False,
  )
  assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize('path', PUBLIC)
def test_every_public_name_has_a_complete_docstring(path):
  text = inspect.getdoc(PUBLIC[path]) or ''
  assert re.fullmatch(r'\S.+[.?:]', text.split('\n')[0])
  if path in TUPLES:
    fields = list(PUBLIC[path]._fields)
    in_prose = all(f'`{field}' in text for field in fields)
    assert in_prose or _entries(text, 'Attributes') == fields
  if path in FUNCTIONS:
    parameters = list(inspect.signature(PUBLIC[path]).parameters)
    explained = _entries(text, 'Args')
    if path in COMPONENTS and explained != parameters:
      assert set(explained) <= set(parameters)
      assert '`optax_sam.' in text
    else:
      assert explained == parameters
  if path in FUNCTIONS and path not in COMPONENTS:
    assert _section(text, 'Returns')
    examples = doctest.DocTestParser().get_examples(text)
    assert any(example.want for example in examples)
