"""The table of methods."""

from rich.console import Console
from rich.table import Table

from optax_sam.train.optimizers.registry import METHODS


def print_methods(console: Console) -> None:
  """Prints one row per method of the registry."""
  table = Table(
    title='Methods',
    caption='s: fraction of the steps that take an ascent step. '
    '1/3: a forward pass over the batch, to rank the examples. '
    '(+ 1/3): a forward pass for the unperturbed loss.',
  )
  table.add_column('method', no_wrap=True)
  for header in ('gradients per step', 'state', 'paper'):
    table.add_column(header, overflow='fold')
  for name, method in METHODS.items():
    row = method.row
    paper = f'{row.paper}, arXiv {row.paper.arxiv}'
    cells = (row.gradients, row.state, paper)
    table.add_row(name, *(cell.replace('`', '') for cell in cells))
  console.print(table)
