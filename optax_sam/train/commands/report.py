"""The command `report`: writes the report of a comparison again."""

from rich.console import Console

from optax_sam.train.commands import progress
from optax_sam.train.comparison import store
from optax_sam.train.config import configs
from optax_sam.train.reports import comparison_report


def run(config: configs.ReportConfig, console: Console) -> None:
  """Renders the saved results of a comparison.

  Raises:
    ValueError: if the directory has no results of a comparison.
    OSError: if the report cannot be written.
  """
  comparison = store.read(config.directory)
  comparison_report.print_table(comparison, console)
  page = comparison_report.write_report(comparison, config.directory)
  progress.say(console, f'Report: {page}')
