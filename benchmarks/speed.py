"""Cost of every method relative to SGD: `python -m benchmarks.speed`.

All rows of a problem alternate in one process, so that load on the machine
affects all of them; ratios are to SGD of the same framework in the same round.
Operations and memory are from XLA's report of the compiled step. Rows of
PyTorch run in a separate process, with the same networks on the same machine.
"""

import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np
import tyro

import optax_sam
from benchmarks import loop_operations, problems, rows, speed_table
from optax_sam.engine import info
from optax_sam.engine.info import SharpnessAwareState

_PYTORCH = 'pytorch_optimizer'
_RESULTS = pathlib.Path(__file__).parent / 'results'


class Runner:
  """Trains one row, a few steps per turn."""

  def __init__(self, row: rows.Row, problem: problems.Problem, length: int):
    """Prepares a row; it is compiled in the first round."""
    self.row = row
    self.seconds: list[float] = []
    self._batches = problem.batches
    self._steps = row.build(problem, length)
    self._state = self._steps.init()
    self._taken = 0

  def turn(self, count: int) -> float:
    """Takes a few steps, and returns the seconds per step."""
    jax.block_until_ready(self._state)
    start = time.perf_counter()
    for position in range(self._taken, self._taken + count):
      batch = self._batches[position % len(self._batches)]
      self._state, _ = self._steps.take(self._state, batch)
    jax.block_until_ready(self._state)
    self._taken += count
    return (time.perf_counter() - start) / count

  def fraction(self) -> float | None:
    """Returns the fraction of steps that took a perturbed gradient."""
    if not info.states(self._state.opt_state, SharpnessAwareState):
      return None
    found = optax_sam.metrics(self._state.opt_state)
    fraction = int(found['second_gradients']) / int(found['step_count'])
    if self.row.fraction not in (None, fraction):
      msg = f'{self.row.name}: {fraction:.0%} steps with a perturbed gradient'
      raise RuntimeError(msg)
    return fraction

  def compiled(self) -> dict[str, float]:
    """Returns XLA's report on the compiled functions of a full step."""
    total = {'flops': 0.0, 'bytes': 0.0}
    for program, arguments in self._steps.programs.values():
      compiled = program.lower(*arguments).compile()
      memory = compiled.memory_analysis()
      peak = (
        memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
      )
      total['flops'] += loop_operations.count(compiled)
      total['bytes'] = max(total['bytes'], peak)
    return total


def measure(
  problem: problems.Problem,
  *,
  rounds: int,
  count: int,
  only: tuple[str, ...] = (),
) -> list[speed_table.Entry]:
  """Measures all rows on one problem.

  Args:
    problem: a network with its batches.
    rounds: number of rounds that count, after two warm-up rounds.
    count: number of consecutive steps of a row in a round.
    only: measure only rows with these names, and the baselines.
  """
  length = (rounds + 2) * count
  runners = [
    Runner(row, problem, length)
    for row in rows.rows()
    if not only or row.group == rows.BASELINES or row.name in only
  ]
  for number in range(rounds + 2):
    for runner in runners:
      seconds = runner.turn(count)
      if number >= 2:
        runner.seconds.append(seconds)
  reference = np.asarray(runners[0].seconds)
  copy = sum(leaf.nbytes for leaf in jax.tree.leaves(problem.init()[0]))
  first = runners[0].compiled()
  return [
    _entry(runner, problem.name, reference, first, copy) for runner in runners
  ]


def _entry(
  runner: Runner,
  problem: str,
  reference: np.ndarray,
  first: dict[str, float],
  copy: int,
) -> speed_table.Entry:
  ratios = np.asarray(runner.seconds) / reference
  low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
  compiled = runner.compiled()
  return speed_table.Entry(
    problem=problem,
    row=runner.row.name,
    group=runner.row.group,
    wall=float(middle),
    low=float(low),
    high=float(high),
    milliseconds=1e3 * float(np.median(runner.seconds)),
    flops=compiled['flops'] / first['flops'],
    memory=compiled['bytes'] / first['bytes'],
    copies=(compiled['bytes'] - first['bytes']) / copy,
    fraction=runner.fraction(),
    gradients=runner.row.gradients,
    counterpart=runner.row.counterpart,
  )


def measure_pytorch(
  name: str, *, rounds: int, count: int
) -> list[speed_table.Entry]:
  """Measures the rows of PyTorch in a separate process."""
  size = problems.SIZES[name] | {
    'features': problems.FEATURES,
    'classes': problems.CLASSES,
  }
  request = {'size': size, 'rounds': rounds, 'count': count}
  result = subprocess.run(
    [sys.executable, '-m', 'benchmarks.torch_rows', json.dumps(request)],
    check=True,
    capture_output=True,
    text=True,
  )
  group = f'PyTorch, {_PYTORCH}'
  return [
    speed_table.Entry(problem=name, group=group, **found)
    for found in json.loads(result.stdout.splitlines()[-1])
  ]


@dataclasses.dataclass(frozen=True)
class Options:
  """Options of the command."""

  rounds: int = 15
  """Number of rounds that count, after two warm-up rounds."""
  steps: int = 10
  """Number of consecutive steps of a row in a round."""
  problems: tuple[str, ...] = tuple(problems.SIZES)
  """Names of the networks, with their size."""
  only: tuple[str, ...] = ()
  """Measure only rows with these names, and the baselines."""
  pytorch: bool = True
  """Whether to measure the rows of PyTorch."""
  lax_convolutions: bool = False
  """Use `jax.lax.conv_general_dilated`."""
  output: pathlib.Path = _RESULTS
  """Directory of speed.csv, speed.md and speed.png; other rows in it are
  unchanged."""


def main(options: Options) -> None:
  """Prints the table by problem, then writes it in three formats."""
  with tempfile.TemporaryDirectory() as directory:
    # The report compiles each step a second time.
    jax.config.update('jax_compilation_cache_dir', directory)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
    jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
    _measure_all(options)


def _measure_all(options: Options) -> None:
  if options.pytorch:
    _check_pytorch()
  print(speed_table.heading())
  names = [(row.group, row.name) for row in rows.rows()]
  convolve = (
    jax.lax.conv_general_dilated
    if options.lax_convolutions
    else optax_sam.conv_general_dilated
  )
  for name in options.problems:
    how: dict[str, Any] = {'rounds': options.rounds, 'count': options.steps}
    problem = problems.build(name, convolve)
    found = measure(problem, only=options.only, **how)
    if options.pytorch:
      found += measure_pytorch(name, **how)
    print(speed_table.markdown(found), flush=True)
    speed_table.write(options.output, found, names)
  print(f'Table: {options.output}/speed.md, .csv, .png')


def _check_pytorch() -> None:
  found = subprocess.run(
    [sys.executable, '-c', f'import torch, {_PYTORCH}'],
    check=False,
    capture_output=True,
  )
  if found.returncode:
    sys.exit(
      f'PyTorch or {_PYTORCH} is missing: install the extra `bench`, or '
      f'omit their rows with --no-pytorch'
    )


if __name__ == '__main__':
  main(tyro.cli(Options))
