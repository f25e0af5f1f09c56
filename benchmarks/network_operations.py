"""Operations of a step relative to SGD, on the networks of the speed table.

    python -m benchmarks.network_operations
    python -m benchmarks.network_operations sam subset_sam

A step is compiled, not run. It returns the unperturbed loss and updates the
statistics of batch norm, unless the row says otherwise. `sam` with a mask
perturbs the leaves that `sparse_sam_layers` perturbs by default.
"""

import argparse

import optax

import optax_sam
from benchmarks import loop_operations, problems, rows, speed_table, steps


def operations(row: rows.Row, problem: problems.Problem) -> float:
  """Returns XLA's operations of a step."""
  ((program, arguments),) = row.build(problem, 100).programs.values()
  return loop_operations.count(program.lower(*arguments).compile())


def masked_sam(problem: problems.Problem, total_steps: int) -> steps.Steps:
  """Returns the step of SAM with a mask of the last half of the leaves."""
  del total_steps
  params, statistics = problem.init()
  losses = lambda p, b: problem.losses(p, statistics, b)[0]
  mask = optax_sam.choose_leaves(
    losses, params, problem.batches[0], 0.5, by='depth'
  )
  method = optax_sam.sam(mask=mask)
  tx = optax.chain(method, steps.base_optimizer())
  return steps.jitted_step(problem, tx)


def main() -> None:
  """Prints the table as Markdown."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('names', nargs='*', default=['sam', 'sparse_sam_layers'])
  names = parser.parse_args().names
  plain, *others = rows.rows()
  chosen = [row for row in others if row.name.partition(',')[0] in names]
  if 'sam' in names:
    chosen.insert(1, rows.Row('sam with a mask', '', masked_sam))
  networks = [problems.build(name) for name in problems.SIZES]
  print(f'{speed_table.heading()}\n')
  print(f'| step | {" | ".join(x.name for x in networks)} |')
  print(f'|---|{"---|" * len(networks)}')
  base = [operations(plain, problem) for problem in networks]
  for row in chosen:
    found = [operations(row, problem) for problem in networks]
    cells = [f'{x / y:.2f}' for x, y in zip(found, base, strict=True)]
    print(f'| {row.name} | {" | ".join(cells)} |', flush=True)


if __name__ == '__main__':
  main()
