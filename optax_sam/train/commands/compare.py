"""The command `compare`: trains methods and seeds, then writes the report."""

from rich.console import Console

from optax_sam.train.commands import progress
from optax_sam.train.comparison import plan, runs
from optax_sam.train.config import checks, configs, output_dir
from optax_sam.train.reports import comparison_report, results

FILES = frozenset(
  {
    output_dir.CONFIG,
    'report.html',
    'results.csv',
    'metrics.jsonl',
  }
)


def run(
  config: configs.CompareConfig, console: Console, command: str = ''
) -> results.Comparison:
  """Compares methods and writes a report.

  Args:
    config: methods, seeds and settings to compare.
    console: console for progress and the table of results.
    command: the command line, for the report.

  Returns:
    The measured comparison. After Ctrl-C it is marked `interrupted` and has
    only the finished runs; if there are none, nothing is written.

  Raises:
    ValueError: if the configuration is invalid; raised before any training.
    OSError: if the output cannot be written.
  """
  checks.validate(config)
  settings = plan.method_settings(config)
  target = config.output or output_dir.dated(configs.dataset_name(config))
  with (
    output_dir.new_directory(
      target, overwrite=config.overwrite, known=FILES
    ) as directory,
    progress.Reporter(console) as reporter,
  ):
    comparison = runs.measure(config, settings, reporter, command)
    if not comparison.runs:
      raise KeyboardInterrupt
    comparison_report.print_table(comparison, console)
    comparison_report.write_report(comparison, directory)
    output_dir.write_config(directory, 'compare', configs.settings(config))
  console.print(
    f'Report: {target / "report.html"}', soft_wrap=True, highlight=False
  )
  return comparison
