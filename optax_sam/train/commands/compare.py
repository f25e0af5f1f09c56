"""The commands `compare`, which trains, and `report`, its report again."""

import contextlib
import pathlib
import shlex

from rich.console import Console

from optax_sam.train.commands import progress
from optax_sam.train.comparison import plan, runs, store
from optax_sam.train.config import checks, configs, errors, output_dir
from optax_sam.train.loop import task
from optax_sam.train.reports import comparison_report, formats, results


def run(
  config: configs.CompareConfig,
  console: Console,
  command: str = '',
  problem: task.Task | None = None,
) -> results.Comparison:
  """Compares methods and writes a report.

  Runs that an earlier command has finished in the same output are not repeated.
  """
  target = config.output or output_dir.dated(configs.dataset_name(config))
  adding = None
  try:
    if problem is None:
      checks.validate(config)
      config, adding = plan.resolve(config)
      checks.validate(config)
    settings, kept = plan.method_settings(config), configs.settings(config)
    store.former_output(target, overwrite=config.overwrite)  # before the data
    problem = problem or task.build(config)
    how = {'overwrite': config.overwrite, 'adding': adding}
    with (
      store.opened(target, kept, **how) as stored,
      progress.Reporter(console) as reporter,
    ):
      comparison = runs.measure(
        config, settings, reporter, command, problem, stored
      )
      page = _write(comparison, target, console)
      if not comparison.interrupted:  # nothing is to be added any more
        output_dir.write_config(target, 'compare', kept)
  except (KeyboardInterrupt, OSError, MemoryError, RuntimeError) as error:
    if (target / output_dir.CONFIG).exists():
      with contextlib.suppress(KeyboardInterrupt):  # again
        progress.say(console, _how_to_go_on(config, target))
      if isinstance(error, KeyboardInterrupt):
        raise SystemExit(errors.INTERRUPTED) from None
    if isinstance(error, OSError):
      error.filename = error.filename or str(target)
    raise
  progress.say(console, f'Report: {page}')
  if comparison.interrupted:
    progress.say(console, _how_to_go_on(config, target))
  return comparison


def report(config: configs.ReportConfig, console: Console) -> None:
  """Writes the report of a comparison again, from its saved results."""
  page = _write(store.read(config.directory), config.directory, console)
  progress.say(console, f'Report: {page}')


def _write(
  comparison: results.Comparison, target: pathlib.Path, console: Console
) -> pathlib.Path:
  comparison_report.print_table(comparison, console)
  return comparison_report.write_report(comparison, target)


def _how_to_go_on(config: configs.CompareConfig, target: pathlib.Path) -> str:
  runs = formats.count(len(store.files(target, 'runs')), 'finished run')
  how = ' without --overwrite' if config.overwrite else ''
  text = f'{target} has {runs}; repeat the command{how} to continue'
  if config.data_dir or config.dataset == 'own data':
    return text
  command = shlex.join(['optax-sam', 'compare', '--output', str(target)])
  return f'{text}, or: {command}'
