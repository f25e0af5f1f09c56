"""Updates the tables of docs/pods.md: `python -m benchmarks.pod_page`.

A table is between two comments, of which the first names its file::

  <!-- results/pod.md -->
  <!-- end -->

The title of the file is omitted.
"""

import pathlib
import re

ROOT = pathlib.Path(__file__).parent
PAGE = ROOT.parent / 'docs' / 'pods.md'

_PLACE = re.compile(
  r'(<!-- (results/[\w.]+) -->\n).*?(<!-- end -->)', re.DOTALL
)


def fill(page: str, directory: pathlib.Path) -> str:
  """Returns a page with the present content of the named files.

  Args:
    page: Markdown.
    directory: base directory of their paths.

  Raises:
    ValueError: if a file is missing.
  """

  def replace(place: re.Match) -> str:
    path = directory / place[2]
    if not path.exists():
      msg = f'{path} is missing: run the command that writes it first'
      raise ValueError(msg)
    text = path.read_text(encoding='utf-8')
    text = re.sub(r'\A# .*\n+', '', text)
    return f'{place[1]}\n{text.strip()}\n\n{place[3]}'

  return _PLACE.sub(replace, page)


def main() -> None:
  """Updates the page."""
  page = PAGE.read_text(encoding='utf-8')
  PAGE.write_text(fill(page, ROOT), encoding='utf-8')
  print(f'Page: {PAGE}')


if __name__ == '__main__':
  main()
