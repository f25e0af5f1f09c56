"""The table of methods."""

from rich.console import Console
from rich.table import Table

from optax_sam.train.optimizers.registry import METHODS


def print_methods(console: Console) -> None:
  """Prints one row per method of the registry."""
  table = Table(
    title='Methods',
    caption='s: share of the steps that take a second gradient. '
    '1/3 is a forward pass over the batch that ranks the examples.',
  )
  table.add_column('method', no_wrap=True)
  for header in ('gradients per step', 'state', 'paper'):
    table.add_column(header, overflow='fold')
  for name, method in METHODS.items():
    table.add_row(name, method.gradients, method.state, method.paper)
  console.print(table)
