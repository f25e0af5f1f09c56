"""The documentation has all public names, and its tables are up to date."""

import importlib
import inspect
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / 'docs'
MODULES = (
  'optax_sam',
  'optax_sam.descents',
  'optax_sam.flax',
  'optax_sam.landscape',
  'optax_sam.perturbations',
  'optax_sam.policies',
  'optax_sam.selections',
  'optax_sam.sharpness',
)


def public_names():
  for path in MODULES:
    module = importlib.import_module(path)
    names = getattr(module, '__all__', None) or [
      name
      for name, value in vars(module).items()
      if not name.startswith('_')
      and getattr(value, '__module__', '').startswith(path)
    ]
    for name in names:
      if not inspect.ismodule(getattr(module, name)):
        yield f'{path}.{name}'


def test_every_public_name_is_in_the_reference():
  pages = [path.read_text() for path in (DOCS / 'api').glob('*.md')]
  listed = re.findall(r'^::: (\S+)$', '\n'.join(pages), re.MULTILINE)
  assert sorted(listed) == sorted(public_names())


def test_tables_of_methods_are_up_to_date():
  path = DOCS / 'tables.py'
  checked = subprocess.run(
    [sys.executable, str(path), '--check'],
    capture_output=True,
    text=True,
    check=False,
  )
  assert checked.returncode == 0, checked.stderr
