import pathlib

from benchmarks.pod import tables

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / 'benchmarks' / 'results'


def cells(text):
  """Returns the cells of each row of all tables."""
  lines = (line for line in text.splitlines() if line.startswith('| '))
  return [line.strip('| ').split(' | ') for line in lines]


def test_pages_have_the_numbers_of_the_compiled_steps():
  entries = tables.read(RESULTS / 'pod.csv')
  text = tables.page(entries)
  assert (RESULTS / 'pod.md').read_text() == text
  rows = {
    row[0]: row for row in reversed(cells(text.partition('vit_s16 on')[0]))
  }
  page = (ROOT / 'docs' / 'pods.md').read_text()
  for step, *numbers in cells(page)[1:]:
    assert set(numbers) <= set(rows[step])
