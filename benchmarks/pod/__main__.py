"""Compiles the trainer's steps for TPU pods: `python -m benchmarks.pod`.

The TPU compiler runs without a TPU. It reports operations, memory and
collectives of a step per chip, and whether conditionals are preserved. No step
is run or timed. Needs the extra `pod` in a separate virtual environment,
because libtpu disturbs other uses of JAX.
"""

import dataclasses
import importlib.util
import itertools
import os
import pathlib
import sys

import tyro

from benchmarks.pod import tables

RESULTS = pathlib.Path(__file__).parents[1] / 'results'
# The compiler needs neither a TPU nor a description of one.
_ENVIRONMENT = {
  'JAX_PLATFORMS': 'cpu',
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-16',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}
METHODS = (
  'sgd',
  'sam',
  'ae_sam',
  'asam',
  'friendly_sam',
  'gsam',
  'ae_look_sam',
  'ss_sam',
  'look_sam',
  'k_sam',
  'subset_sam',
  'sgd, not donated',
  'sam, not donated',
  'fsdp/sgd',
  'fsdp/sam',
  'shard_map/sgd',
  'shard_map/sam',
  'shard_map/sam, local ascent',
  'shard_map/ae_sam',
  'shard_map/k_sam',
  'shard_map/subset_sam',
)


@dataclasses.dataclass(frozen=True)
class Options:
  """Options of the command."""

  topologies: tuple[str, ...] = ('v5e:16x16', 'v4:4x4x4', 'v5e:16x16*2')
  """Names of devices in libtpu; `*2` means two slices."""
  models: tuple[str, ...] = ('resnet50', 'vit_s16')
  """Models of the recipes in recipes/imagenet: resnet50, vit_s16."""
  methods: tuple[str, ...] = METHODS
  """`sgd` for the base optimizer of the recipe alone, or methods. With the
  prefix `fsdp/` the parameters are sharded, with `shard_map/` the step is
  handwritten. With `, not donated` the step keeps its input state, with `,
  local ascent` it has no `sync_ascent`."""
  optimization: tuple[str, ...] = ('O0',)
  """Optimization levels: `O0` is fast and gives operations and collectives,
  `default` takes minutes per row and gives memory."""
  again: bool = False
  """Recompile rows that exist with the same versions."""
  output: pathlib.Path = RESULTS
  """Directory of pod.csv and pod.md; other rows are unchanged."""

  @property
  def columns(self) -> tuple[tuple[str, ...], ...]:
    """Values of the parts of a key, in the order of the tables."""
    return self.topologies, self.models, self.methods, self.optimization


def main(options: Options) -> int:
  """Compiles missing rows, and writes the table after every row.

  Returns:
    The number of rows that could not be compiled.
  """
  if importlib.util.find_spec('libtpu') is None:
    sys.exit(
      'libtpu is missing: install the extra `pod` into a separate virtual '
      "environment: pip install -e '.[pod]'"
    )
  os.environ.update(_ENVIRONMENT)
  from benchmarks.pod import programs  # imports JAX

  path = options.output / 'pod.csv'
  entries = {entry.key: entry for entry in tables.read(path)}
  failed = 0
  for key in itertools.product(*options.columns):
    name, former = ', '.join(key), entries.get(key)
    if former and former.versions == tables.versions() and not options.again:
      print(f'{name}: exists', flush=True)
      continue
    try:
      report = programs.compile_row(*key)
    except Exception as error:  # noqa: BLE001 - a compiler error of one row
      failed += 1
      print(f'{name}: {error}'.splitlines()[0], flush=True)
      continue
    entries[key] = tables.entry(key, len(programs.devices(key[0])), report)
    ordered = sorted(entries.values(), key=_rank)
    print(f'{name}: {entries[key].flops / 1e9:.1f} Gflop', flush=True)
    tables.write(path, ordered)
    path.with_suffix('.md').write_text(tables.page(ordered), encoding='utf-8')
  print(f'Table: {options.output}/pod.md, pod.csv')
  return failed


def _rank(entry: tables.Entry) -> list[tuple[int, str]]:
  """Sorts rows in the order of the defaults, others last."""
  defaults = dataclasses.replace(Options(), optimization=('O0', 'default'))
  return [
    (names.index(name) if name in names else len(names), name)
    for name, names in zip(entry.key, defaults.columns, strict=True)
  ]


if __name__ == '__main__':
  sys.exit(1 if main(tyro.cli(Options)) else 0)
