"""The trainer's steps on a TPU pod, without one: `python -m benchmarks.pod`.

The compiler for TPUs runs anywhere: it says how many operations, how much
memory and which collectives a step takes on every chip, and whether a
conditional stays one. Nothing is run and nothing is timed. Needs the extra
`pod`, in a virtual environment of its own: libtpu disturbs other uses of JAX.
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

# The compiler asks for no TPU and for no machine's description of one.
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
  """What to compile, and where the table goes."""

  topologies: tuple[str, ...] = TOPOLOGIES
  """Devices as libtpu names them; `*2` stands for two slices."""
  models: tuple[str, ...] = ('resnet50', 'vit_s16')
  """Of the recipes in recipes/imagenet: resnet50, vit_s16."""
  methods: tuple[str, ...] = METHODS
  """`sgd` for the base optimizer of the recipe alone, or methods; after
  `shard_map/` by hand, and with `, local ascent` without `sync_ascent`."""
  optimization: tuple[str, ...] = ('O0',)
  """Of the compiler: `O0` is fast and gives operations and collectives,
  `default` takes minutes a row and gives memory."""
  again: bool = False
  """Compile rows anew that are there with the same versions."""
  output: pathlib.Path = RESULTS
  """Directory of pod.csv and pod.md; other rows stay there as they are."""


def prepare() -> None:
  """Sets what has to be set before JAX is loaded.

  Exits if the compiler isn't there.
  """
  if importlib.util.find_spec('libtpu') is None:
    sys.exit(
      'libtpu is missing: install the extra `pod` into a virtual environment '
      "of its own, as in pip install -e '.[pod]'"
    )
  os.environ.update(_ENVIRONMENT)


def rows(options: Options) -> Iterator[tuple[str, str, str, str]]:
  """Returns topology, model, method and optimization of all rows."""
  return itertools.product(
    options.topologies, options.models, options.methods, options.optimization
  )


def main(options: Options) -> int:
  """Compiles what isn't there yet, and writes the table after every row.

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
      print(f'{", ".join(key)}: there already', flush=True)
      continue
    topology = pod_programs.Topology.parse(key[0])
    try:
      figures = pod_programs.compile_row(topology, *key[1:])
    except Exception as error:  # noqa: BLE001 - of the compiler, one row's
      failed += 1
      print(f'{", ".join(key)}: {error}'.splitlines()[0], flush=True)
      continue
    found = pod_table.entry(key, topology.mesh().size, figures)
    print(f'{", ".join(key)}: {_summary(found)}', flush=True)
    # Another command may have added rows in the meantime.
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
  """Returns rows as the defaults are listed, what isn't there last."""

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
