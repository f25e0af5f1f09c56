"""Tables and picture of the speed benchmark, without measurements."""

from benchmarks import speed_table


def entry(problem, row, group='every step', wall=2.0, **given):
  ratios = {'wall': wall, 'low': wall, 'high': wall}
  return speed_table.Entry(
    problem=problem, row=row, group=group, milliseconds=1.0, **ratios, **given
  )


def test_a_row_that_the_first_network_lacks_is_in_its_group():
  entries = [
    entry('small', 'SGD', 'baselines'),
    entry('small', 'sam'),
    entry('small', 'k_sam', 'some examples'),
    entry('small', 'SGD', 'PyTorch'),
    entry('large', 'late'),
    entry('large', 'sam'),
  ]
  names = [
    ('baselines', 'SGD'),
    ('every step', 'late'),
    ('every step', 'sam'),
    ('some examples', 'k_sam'),
  ]
  lines = speed_table.overview(entries, names).splitlines()[2:]
  assert [line.split(' | ')[0].strip('| ') for line in lines] == [
    '**baselines**',
    'SGD',
    '**every step**',
    'late',
    'sam',
    '**some examples**',
    'k_sam',
    '**PyTorch**',
    'SGD',
  ]
