import io

import pytest
import rich.console

from optax_sam.train.reports.comparison_report import print_table
from tests.train.comparisons import ODD, of_accuracies, usual


def printed(made, width=100):
  stream = io.StringIO()
  print_table(made, rich.console.Console(file=stream, width=width))
  return stream.getvalue()


def test_table_shows_base_first_and_marks_what_is_not_resolved():
  text = printed(usual())
  lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
  assert text.index(lines['sgd']) < text.index(lines['sam'])
  assert '▲ +3.10 (' in lines['sam']
  assert '~ +0.17 (' in lines['asam']
  assert '2.00\N{MULTIPLICATION SIGN}' in lines['sam']


def test_table_gives_up_columns_before_it_folds():
  names = ('sharpness', 'eigen')
  wide, narrow = printed(usual(), 100), printed(usual(), 70)
  assert all(name in wide for name in names)
  assert not any(name in narrow for name in names)
  assert '▲ +3.10 (' in narrow


@pytest.mark.parametrize('name', ODD)
@pytest.mark.parametrize('width', [60, 80, 100, 140])
def test_no_line_is_wider_than_the_terminal(name, width):
  text = printed(ODD[name], width)
  assert max(map(len, text.splitlines())) <= width
  for method in ODD[name].methods:
    assert method[:8] in text
  assert 'nan' not in text
  assert 'None' not in text


def test_names_are_not_read_as_markup():
  made = of_accuracies(sgd=[0.9], **{'[red]sam[/red]': [0.9]})
  assert '[red]sam[/red]' in printed(made)
