"""The hook of MkDocs: adds generated pages, tables, links and the version."""

import pathlib
import re
import sys
import tomllib
from typing import Any

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'docs')]

import evidence  # noqa: E402
import include  # noqa: E402
import method_pages  # noqa: E402
import notebook_pages  # noqa: E402
import sam_picture  # noqa: E402
import tables  # noqa: E402

import optax_sam  # noqa: E402

_OPTAX = 'https://optax.readthedocs.io/en/latest/api'
_MASK = 'fine-tune-a-part-of-the-parameters'
_FLAX = 'https://flax.readthedocs.io/en/stable/api_reference'
_PYTHON = 'https://docs.python.org/3/library'
_TRANSFORMATIONS = (
  'EmptyState',
  'GradientTransformation',
  'GradientTransformationExtraArgs',
  'OptState',
  'Params',
  'Updates',
)
TABLES = (
  tables.BLOCKS
  | evidence.TABLES
  | {
    'how to choose': method_pages.how_to_choose,
    'notebooks': notebook_pages.gallery,
    'picture of SAM': sam_picture.figure,
  }
)
# Where types of other libraries are documented. The inventories of these sites
# would have to be downloaded at every build.
TYPES = {
  **{
    f'optax.{name}': f'{_OPTAX}/transformations.html#optax.{name}'
    for name in _TRANSFORMATIONS
  },
  'optax.Schedule': (
    f'{_OPTAX}/optimizer_schedules.html#optax.schedules.Schedule'
  ),
  'optax.ScalarOrSchedule': f'{_OPTAX}/optimizer_schedules.html',
  'jax.Array': 'https://docs.jax.dev/en/latest/_autosummary/jax.Array.html',
  'numpy.ndarray': (
    'https://numpy.org/doc/stable/reference/generated/numpy.ndarray.html'
  ),
  'flax.nnx.Module': f'{_FLAX}/flax.nnx/module.html#flax.nnx.Module',
  'flax.nnx.Param': f'{_FLAX}/flax.nnx/variables.html#flax.nnx.Param',
  **{
    f'{module}.{name}': f'{_PYTHON}/{module}.html#{module}.{name}'
    for module, names in (
      ('collections.abc', ('Callable', 'Iterable', 'Mapping', 'Sequence')),
      ('typing', ('Any', 'Literal', 'NamedTuple')),
    )
    for name in names
  },
  **{
    name: f'{_PYTHON}/functions.html#{name}'
    for name in ('bool', 'float', 'int')
  },
  **{
    name: f'{_PYTHON}/stdtypes.html#{name}' for name in ('dict', 'str', 'tuple')
  },
}


def on_config(config: Any) -> Any:
  """Adds the version, the repository and the generated pages."""
  config.site_name = f'optax_sam {optax_sam.__version__}'
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  if repository := project.get('urls', {}).get('Repository'):
    config.repo_url = repository
    config.repo_name = repository.removeprefix('https://github.com/')
    config.edit_uri = f'{repository}/edit/main/docs/'
  for section, pages in (
    ('methods/index.md', method_pages.nav()),
    ('learn/notebooks/index.md', notebook_pages.nav()),
  ):
    _section(config.nav, section).extend(pages)
  return config


def on_pre_build(config: Any) -> None:
  """Registers the types of other libraries."""
  for name, url in TYPES.items():
    config.plugins['autorefs'].register_url(name, url)


def on_files(files: Any, config: Any) -> Any:
  """Adds the generated pages and the pictures."""
  for name, text in method_pages.pages().items():
    files.append(File.generated(config, name, content=text))
  for name, content in notebook_pages.pages().items():
    files.append(File.generated(config, name, content=content))
  for name, path in evidence.PICTURES.items():
    files.append(File.generated(config, name, abs_src_path=str(path)))
  return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
  """Includes files and tables in a page."""
  if page.file.src_uri == 'howto/fine_tuning.md':
    # The page that explains this type.
    config.plugins['autorefs'].register_anchor(
      page, 'optax_sam.engine.partition.Mask', _MASK
    )
  return include.included(markdown, TABLES)


def on_post_page(output: str, **_: Any) -> str:
  """Lets long names in headings break after points and underscores."""
  return re.sub(
    r'(?<=<span class="doc doc-object-name )([^>]*>)([^<]*)',
    lambda found: found[1] + re.sub(r'([._])', r'\1<wbr>', found[2]),
    output,
  )


def _section(nav: Any, page: str) -> list:
  """Returns the part of the navigation whose first entry is a page."""
  for entry in nav:
    if isinstance(entry, dict):
      for below in entry.values():
        if isinstance(below, list):
          if below[0] == page:
            return below
          found = _section(below, page)
          if found:
            return found
  return []
