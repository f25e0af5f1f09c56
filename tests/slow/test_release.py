"""The release: one version, a complete sdist, a wheel that needs the core only.

The wheel is installed into an empty environment.
"""

import os
import pathlib
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest

import optax_sam

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group('release')]

ROOT = pathlib.Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
VERSION = optax_sam.__version__
# Without the settings of the tests and the modules of the checkout.
ENVIRONMENT = {
  name: value
  for name, value in os.environ.items()
  if name not in ('PYTHONPATH', 'XLA_FLAGS') and not name.startswith('JAX_')
}
# Modules whose extra is missing, and the package that they name.
NEED_EXTRAS = {'optax_sam.equinox': 'equinox', 'optax_sam.flax': 'flax'}
IMPORT_ALL = """
import importlib, pkgutil, optax_sam
for module in pkgutil.walk_packages(optax_sam.__path__, 'optax_sam.'):
  if module.name.startswith('optax_sam.train'):
    continue
  try:
    importlib.import_module(module.name)
  except ModuleNotFoundError as error:
    print(module.name, error.name)
"""
# The ascent step goes from (3, 4), of norm 5, to 1.2 times these parameters.
STEP = """
import sys, jax, jax.numpy as jnp, optax, optax_sam
assert optax_sam.__file__.startswith(sys.prefix), optax_sam.__file__
loss = lambda params, scale: scale * jnp.sum(params**2) / 2
tx = optax.chain(optax_sam.sam(rho=1.0), optax.sgd(0.5))
params = jnp.array([3.0, 4.0])
step = jax.jit(optax_sam.make_step(loss, tx))
params, state, output = step(params, tx.init(params), 1.0)
print(*params.tolist(), float(output.loss))
"""


def run(*command, cwd, status=0):
  """Returns what a process prints; checks its exit status."""
  done = subprocess.run(
    [str(part) for part in command],
    cwd=cwd,
    env=ENVIRONMENT,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == status, done.stdout + done.stderr
  return done.stdout + (done.stderr if status else '')


@pytest.fixture(scope='module')
def built(tmp_path_factory):
  """Returns the paths of the sdist and of the wheel."""
  directory = tmp_path_factory.mktemp('built')
  run(sys.executable, '-m', 'hatchling', 'build', '-d', directory, cwd=ROOT)
  stem = f'optax_sam-{VERSION}'
  return directory / f'{stem}.tar.gz', directory / f'{stem}-py3-none-any.whl'


@pytest.fixture(scope='module')
def installed(built, tmp_path_factory):
  """Returns the `bin` of an environment with the wheel and what it requires."""
  home = tmp_path_factory.mktemp('installed')
  run(sys.executable, '-m', 'venv', home, cwd=home)
  run(home / 'bin/pip', 'install', '--quiet', built[1], cwd=home)
  return home / 'bin'


def test_the_wheel_installs_without_the_extras(installed):
  listed = run(installed / 'pip', 'list', '--format=freeze', cwd=installed)
  names = {line.split('==')[0].lower() for line in listed.split()}
  required = {re.match(r'[\w-]+', x)[0] for x in PROJECT['dependencies']}
  assert required | {'optax-sam'} <= names
  extras = {
    re.match(r'[\w-]+', requirement)[0].lower()
    for requirements in PROJECT['optional-dependencies'].values()
    for requirement in requirements
  } - {'optax-sam', 'scipy', 'jax'}  # JAX requires SciPy
  assert {'flax', 'equinox', 'matplotlib', 'matfree', 'tyro'} < extras
  assert not names & extras


def test_a_step_runs_without_the_extras(installed):
  # 0.5 * 1.2 times the parameters is subtracted; the loss is 25 / 2.
  printed = run(installed / 'python', '-c', STEP, cwd=installed)
  assert [float(x) for x in printed.split()] == pytest.approx([1.2, 1.6, 12.5])


def test_only_modules_of_the_extras_need_them(installed):
  printed = run(installed / 'python', '-c', IMPORT_ALL, cwd=installed)
  assert dict(line.split() for line in printed.splitlines()) == NEED_EXTRAS


def test_the_command_names_its_version_and_its_missing_extra(installed):
  # Without Tyro, so that the version needs none of the trainer's imports.
  command = installed / 'optax-sam'
  assert run(command, '--version', cwd=installed) == f'optax-sam {VERSION}\n'
  error = run(command, 'methods', cwd=installed, status=2)
  assert "pip install 'optax-sam[train]'" in error
  assert error.count('\n') == 1


def test_the_version_has_one_source(installed):
  assert 'version' not in PROJECT
  code = "import importlib.metadata as m; print(m.version('optax-sam'))"
  printed = run(installed / 'python', '-c', code, cwd=installed)
  assert printed.strip() == VERSION
  changelog = (ROOT / 'CHANGELOG.md').read_text()
  first = re.search(r'^## \[(.*?)\]', changelog, re.MULTILINE)
  assert first[1] == VERSION


def test_the_sdist_has_every_file_of_the_repository(built):
  if not (ROOT / '.git').exists():
    pytest.skip('not a repository')
  tracked = run('git', 'ls-files', '-z', cwd=ROOT).split('\0')[:-1]
  with tarfile.open(built[0]) as archive:
    names = {name.partition('/')[2] for name in archive.getnames()}
  assert set(tracked) - names == set()
  assert {'Makefile', '.ci/run', 'mkdocs.yml', 'LICENSE'} <= names
  # Neither environments nor what was built.
  listed = ('git', 'ls-files', '-z', '--others', '--exclude-standard')
  new = run(*listed, cwd=ROOT).split('\0')
  assert names - set(tracked) - set(new) == {'PKG-INFO'}


def test_the_wheel_has_the_package_only(built):
  with zipfile.ZipFile(built[1]) as archive:
    names = set(archive.namelist())
  metadata = f'optax_sam-{VERSION}.dist-info'
  assert {name.split('/')[0] for name in names} == {'optax_sam', metadata}
  assert {'optax_sam/py.typed', f'{metadata}/licenses/LICENSE'} <= names


def test_the_readme_names_the_lowest_versions():
  readme = (ROOT / 'README.md').read_text()
  bounds = dict(x.split('>=') for x in PROJECT['dependencies'])
  python = PROJECT['requires-python'].removeprefix('>=')
  named = (
    f'Python {python}, jax {bounds["jax"]} and optax {bounds["optax"]} or newer'
  )
  assert named in readme
  for extra in ('flax', 'equinox'):
    (bound,) = PROJECT['optional-dependencies'][extra]
    assert bound.replace('>=', ' ') in readme
