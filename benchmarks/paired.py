"""Steps here against those of another checkout: `python -m benchmarks.paired`.

Both versions of the library run in one process, and each row alternates
between them, so that load on the machine affects both. The rows of SGD and of
SAM by hand are the same functions in both, and show the noise.
"""

import dataclasses
import importlib
import pathlib
import sys
from types import ModuleType
from typing import Any

import numpy as np
import tyro

_HERE = pathlib.Path(__file__).parents[1]


class Version:
  """The modules of one checkout."""

  def __init__(self, directory: pathlib.Path) -> None:
    """Imports the benchmarks of a checkout, and the library with them."""
    self._directory = str(directory.resolve())
    self._modules: dict[str, ModuleType] = {}
    self.activate()
    self.speed: Any = importlib.import_module('benchmarks.speed')
    self._modules = _own_modules()

  def activate(self) -> None:
    """Makes later imports find this version."""
    for name in _own_modules():
      del sys.modules[name]
    sys.modules.update(self._modules)
    others = [path for path in sys.path if path != self._directory]
    sys.path[:] = [self._directory, *others]


def _own_modules() -> dict[str, ModuleType]:
  return {
    name: module
    for name, module in sys.modules.items()
    if name.split('.')[0] in {'benchmarks', 'optax_sam'}
  }


@dataclasses.dataclass(frozen=True)
class Options:
  """Options of the command."""

  against: pathlib.Path
  """Directory of the other checkout, as `git worktree add` makes it."""
  problem: str = 'dense, small'
  """Name of the network, with its size."""
  only: tuple[str, ...] = ()
  """Measure only rows with these names."""
  rounds: int = 12
  """Number of rounds that count, after two warm-up rounds."""
  steps: int = 10
  """Number of consecutive steps of a version in a round."""


def main(options: Options) -> None:
  """Prints the median ratio of each row, with its quartiles."""
  versions = [Version(options.against), Version(_HERE)]
  problems, rows = [], []
  for version in versions:
    version.activate()
    problems.append(version.speed.problems.build(options.problem))
    rows.append({row.name: row for row in version.speed.rows.rows()})
  length = (options.rounds + 2) * options.steps
  for name in options.only or [name for name in rows[1] if name in rows[0]]:
    runners = []
    for version, problem, by_name in zip(versions, problems, rows, strict=True):
      version.activate()
      runners.append(version.speed.Runner(by_name[name], problem, length))
    seconds = []
    for number in range(options.rounds + 2):
      order = (0, 1) if number % 2 else (1, 0)
      took = dict.fromkeys(order, 0.0)
      for index in order:
        versions[index].activate()
        took[index] = runners[index].turn(options.steps)
      seconds.append((took[0], took[1]))
    ratios = [new / old for old, new in seconds[2:]]
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    print(f'{name}: {middle:.3f} ({low:.2f} to {high:.2f})', flush=True)


if __name__ == '__main__':
  main(tyro.cli(Options))
