import pytest

from benchmarks import pod_page

PAGE = """\
# Page

<!-- results/one.md -->
old
<!-- end -->

Between.

<!-- results/two.md -->
<!-- end -->
"""


def test_tables_are_put_between_their_comments(tmp_path):
  (tmp_path / 'results').mkdir()
  (tmp_path / 'results' / 'one.md').write_text('# Title\n\n| a |\n')
  (tmp_path / 'results' / 'two.md').write_text('### Part\n\n| b |\n')
  filled = pod_page.fill(PAGE, tmp_path)
  assert 'old' not in filled
  assert 'Title' not in filled
  assert filled.index('| a |') < filled.index('Between') < filled.index('| b |')
  assert pod_page.fill(filled, tmp_path) == filled


def test_a_missing_table_is_named(tmp_path):
  with pytest.raises(ValueError, match=r'one\.md is missing'):
    pod_page.fill(PAGE, tmp_path)
