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
from collections.abc import Iterator

import tyro

RESULTS = pathlib.Path(__file__).parent / 'results'

# The compiler needs neither a TPU nor a description of one.
_ENVIRONMENT = {
  'JAX_PLATFORMS': 'cpu',
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-16',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}

TOPOLOGIES = ('v5e:16x16', 'v4:4x4x4', 'v5e:16x16*2')
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

  topologies: tuple[str, ...] = TOPOLOGIES
  """Names of devices in libtpu; `*2` means two slices."""
  models: tuple[str, ...] = ('resnet50', 'vit_s16')
  """Models of the recipes in recipes/imagenet: resnet50, vit_s16."""
  methods: tuple[str, ...] = METHODS
  """`sgd` for the base optimizer of the recipe alone, or methods; with the
  prefix `shard_map/` a handwritten step, and with `, local ascent` without
  `sync_ascent`."""
  optimization: tuple[str, ...] = ('O0',)
  """Optimization levels: `O0` is fast and gives operations and collectives,
  `default` takes minutes per row and gives memory."""
  again: bool = False
  """Recompile rows that exist with the same versions."""
  output: pathlib.Path = RESULTS
  """Directory of pod.csv and pod.md; other rows are unchanged."""


def prepare() -> None:
  """Sets environment variables before JAX is imported.

  Exits if libtpu is missing.
  """
  if importlib.util.find_spec('libtpu') is None:
    sys.exit(
      'libtpu is missing: install the extra `pod` into a separate virtual '
      "environment: pip install -e '.[pod]'"
    )
  os.environ.update(_ENVIRONMENT)


def rows(options: Options) -> Iterator[tuple[str, str, str, str]]:
  """Returns topology, model, method and optimization of all rows."""
  return itertools.product(
    options.topologies, options.models, options.methods, options.optimization
  )


def main(options: Options) -> int:
  """Compiles missing rows, and writes the table after every row.

  Returns:
    The number of rows that could not be compiled.
  """
  prepare()
  from benchmarks import pod_programs, pod_table

  options.output.mkdir(parents=True, exist_ok=True)
  path = options.output / 'pod.csv'
  entries = {entry.key: entry for entry in pod_table.read(path)}
  failed = 0
  for key in rows(options):
    former = entries.get(key)
    now = pod_table.versions()
    if former is not None and former.versions == now and not options.again:
      print(f'{", ".join(key)}: exists', flush=True)
      continue
    topology = pod_programs.Topology.parse(key[0])
    try:
      report = pod_programs.compile_row(topology, *key[1:])
    except Exception as error:  # noqa: BLE001 - a compiler error of one row
      failed += 1
      print(f'{", ".join(key)}: {error}'.splitlines()[0], flush=True)
      continue
    found = pod_table.entry(key, topology.mesh().size, report)
    print(f'{", ".join(key)}: {_summary(found)}', flush=True)
    # Another process may have added rows.
    entries = {e.key: e for e in pod_table.read(path)} | {key: found}
    ordered = in_order(entries.values())
    pod_table.write(path, ordered)
    (options.output / 'pod.md').write_text(
      pod_table.page(ordered), encoding='utf-8'
    )
  print(f'Table: {options.output}/pod.md, pod.csv')
  return failed


def _summary(entry) -> str:
  return (
    f'{entry.flops / 1e9:.1f} Gflop, peak {entry.peak_bytes / 2**20:.0f} MiB, '
    f'{entry.kinds or "no collectives"}, {entry.conditionals} conditionals, '
    f'{entry.products_inside} of {entry.products} products in them'
  )


def in_order(entries) -> list:
  """Returns rows in the order of the defaults, others last."""

  def rank(entry) -> tuple:
    listed = zip(
      entry.key,
      (TOPOLOGIES, ('resnet50', 'vit_s16'), METHODS, ('O0', 'default')),
      strict=True,
    )
    return tuple(
      (names.index(name) if name in names else len(names), name)
      for name, names in listed
    )

  return sorted(entries, key=rank)


if __name__ == '__main__':
  sys.exit(1 if main(tyro.cli(Options)) else 0)
