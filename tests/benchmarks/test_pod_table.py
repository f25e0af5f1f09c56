import dataclasses
import datetime as dt
import types

import pytest

from benchmarks import hlo, pod, pod_table


def _entry(row, *, optimization='O0', flops=1e9, peak=2**20, inside=0):
  reduced = hlo.Traffic(2, 1_000_000)
  structure = hlo.Structure(
    collectives={'all-reduce': reduced},
    inside=hlo.Traffic(inside, inside * 500_000),
    conditionals=int(inside > 0),
    products=3,
    products_inside=inside,
    loops=0,
  )
  figures = types.SimpleNamespace(
    flops=flops, peak_bytes=peak, structure=structure
  )
  key = ('v5e:16x16', 'resnet50', row, optimization)
  return pod_table.entry(key, 256, figures, dt.date(2026, 1, 2))


def test_rows_survive_the_file(tmp_path):
  entries = [_entry('sgd'), _entry('ae_sam', inside=1, flops=2e9)]
  path = tmp_path / 'pod.csv'
  assert pod_table.read(path) == []
  pod_table.write(path, entries)
  assert pod_table.read(path) == entries
  assert [p.name for p in tmp_path.iterdir()] == ['pod.csv']


def test_ratios_are_to_sgd_in_the_same_kind_of_program():
  entries = [
    _entry('sgd', flops=1e9),
    _entry('sam', flops=2e9),
    _entry('shard_map/sgd', flops=4e9),
    _entry('shard_map/sam', flops=6e9),
  ]
  lines = pod_table.markdown(entries).splitlines()
  row = {line.split('|')[1].strip(): line for line in lines if '|' in line}
  assert '2.0 G (2.000)' in row['sam']
  assert '6.0 G (1.500)' in row['shard_map/sam']


def test_memory_is_shown_at_both_optimizations():
  entries = [
    _entry('sgd', peak=8 * 2**20),
    _entry('sgd', optimization='default', peak=4 * 2**20),
    _entry('sam', peak=10 * 2**20),
    _entry('sam', optimization='default', peak=5 * 2**20),
    _entry('asam', peak=12 * 2**20),
  ]
  text = pod_table.markdown(entries)
  assert '| sam | 1.0 G (1.000) | 5 (1.250) | 10 (1.250) |' in text
  assert '| asam | 1.0 G (1.000) | — | 12 (1.500) |' in text


def test_rows_are_listed_as_the_command_lists_them():
  names = ['zzz', 'ae_sam', 'sam', 'sgd', 'shard_map/sgd']
  entries = [_entry(name) for name in names]
  other = dataclasses.replace(entries[0], topology='v4:4x4x4', row='sgd')
  ordered = pod.in_order([other, *entries])
  assert [e.row for e in ordered] == [
    'sgd', 'sam', 'ae_sam', 'shard_map/sgd', 'zzz', 'sgd'
  ]  # fmt: skip


def test_without_the_compiler_one_line_says_what_to_install(monkeypatch):
  monkeypatch.setattr(pod.importlib.util, 'find_spec', lambda _: None)
  with pytest.raises(SystemExit, match=r'extra `pod`') as raised:
    pod.prepare()
  assert '\n' not in str(raised.value)
