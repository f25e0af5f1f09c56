"""The report of a comparison: HTML page, CSV, JSON lines, terminal."""

import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from optax_sam.train.config import configs, output_dir
from optax_sam.train.reports import figures, formats, page, paired, tables
from optax_sam.train.reports.formats import count, join, printable, title
from optax_sam.train.reports.paired import Difference
from optax_sam.train.reports.results import Comparison, mean

if TYPE_CHECKING:
  import rich.console

# A sentence lists at most this many names.
_NAMES = 4
# The lists of rows of a run; without an s their names are kinds of rows.
_ROWS = ('log', 'validations', 'evaluations', 'landscape')


def write_report(comparison: Comparison, path: pathlib.Path) -> pathlib.Path:
  """Writes the report; returns the path of its page.

  The path is a file that ends in `.html`; or a directory, which also gets
  results.csv, and metrics.jsonl with the rows of all runs. Each has `method`,
  `seed` and `kind`. NaN and infinity, which JSON lacks, are null. All files are
  rendered before the first is written; each is written atomically.
  """
  text = render_page(comparison).encode()
  if path.suffix == '.html':
    output_dir.write(path, text)
    return path
  lines = [
    {'method': run.method, 'seed': run.seed, 'kind': name.rstrip('s'), **row}
    for run in comparison.runs
    for name in _ROWS
    for row in getattr(run, name)
  ]
  files = {
    'results.csv': tables.results_csv(comparison).encode(),
    'metrics.jsonl': msgspec.json.Encoder().encode_lines(lines),
    'report.html': text,
  }
  for name, content in files.items():
    output_dir.write(path / name, content)
  return path / 'report.html'


def print_table(
  comparison: Comparison, console: 'rich.console.Console'
) -> None:
  """Prints headline, table and warnings."""
  from rich.text import Text

  found = paired.differences(comparison)
  text = printable(headline(comparison, found))
  console.print(Text(f'\n{text}.', style='bold'))
  if found:
    console.print(tables.for_terminal(tables.results(comparison)))
  for sentence in warnings(comparison, found):
    console.print(Text(printable(sentence), style='yellow'))


def render_page(comparison: Comparison) -> str:
  """Renders the report of a comparison, or of a single run, as HTML."""
  differences, methods = paired.differences(comparison), comparison.methods
  results = tables.results(comparison)
  shown = [results, tables.fit(comparison), tables.by_seed(comparison)]
  train, compare = configs.TrainConfig(), configs.CompareConfig()
  defaults = configs.settings(train) | configs.settings(compare)
  return page.render(
    comparison,
    shown[: 3 if len(comparison.runs) > 1 else 2] if methods else [],
    {
      'Score and cost': figures.scores(comparison, differences),
      'Learning curves': figures.learning_curves(comparison),
      'Tuning': figures.sensitivity(comparison),
      'Sharpness and landscape': figures.solutions(comparison),
    },
    downloads={
      'results.csv': tables.results_csv(comparison),
      'results.md': tables.markdown(results),
      'results.tex': tables.latex(results),
    },
    title=f'{count(len(methods), "method")} on {_data(comparison)}',
    headline=headline(comparison, differences),
    setup=_setup(comparison),
    warnings=warnings(comparison, differences),
    glossary='glossary.html',
    facts={
      'Settings other than the defaults': {
        name.replace('_', ' '): value
        for name, value in comparison.settings.items()
        if name != 'methods' and value != defaults.get(name)
      },
      'Settings of the methods': {
        title(name): comparison.runs_of(name)[0].settings for name in methods
      },
    },
  )


def headline(
  comparison: Comparison, differences: Mapping[str, Difference]
) -> str:
  """Returns the main result in one sentence: only significant differences."""
  base, metric = title(comparison.base), comparison.metric
  score = comparison.scores(comparison.base)
  others = {x: d for x, d in differences.items() if x != comparison.base}
  if not score:
    return f'No comparison: {base} has no finite test {metric.title}'
  if not others:
    text = formats.score(mean(score.values()), metric) + '%' * metric.percent
    return f'{base} on {_data(comparison)}: {text} test {metric.title}'
  if not any(one.interval for one in others.values()):
    one = 'With one seed no' if len(comparison.seeds) == 1 else 'No'
    return f'{one} difference to {base} can be tested'
  unit, parts = ' points' * metric.percent, []
  # The largest difference first.
  ranked = sorted(others.items(), key=lambda item: -abs(item[1].mean or 0.0))
  for word in ('better', 'worse'):
    group = [item for item in ranked if item[1].verdict == word]
    names = [title(name) for name, _ in group[:_NAMES]]
    sizes = [formats.gain(one.mean, metric) for _, one in group[:_NAMES]]
    if group[_NAMES:]:
      names.append(count(len(group) - _NAMES, 'other'))
    if group:
      verb = 'has' if len(group) == 1 else 'have'
      than = f'a {word} test {metric.title} than {base}'
      parts.append(f'{join(names)} {verb} {than} ({", ".join(sizes)}{unit})')
  rest = sum(not one.significant for one in others.values())
  if parts and rest:
    parts.append(f'no clear difference for {count(rest, "other")}')
  seeds = count(len(comparison.seeds), 'seed')
  return '; '.join(parts) or f'No clear difference to {base}, with {seeds}'


def _data(comparison: Comparison) -> str:
  return str(comparison.settings.get('dataset', 'own data'))


def _setup(comparison: Comparison) -> str:
  """Describes the comparison in one line."""
  settings, steps = comparison.settings, count(comparison.total_steps, 'step')
  if comparison.budget != 'steps':
    steps = f'{comparison.budget} of {steps} of {title(comparison.base)}'
  noise: Any = settings.get('label_noise')
  parts = [
    _data(comparison),
    f'{100 * noise:.3g}% wrong training labels' if noise else '',
    settings.get('model'),
    count(len(comparison.seeds), 'seed'),
    f'{steps} per run',
    count(comparison.test_examples, 'test example'),
    # That of a resumed run is not known.
    f'{comparison.seconds:,.0f} s' if comparison.seconds > 0 else '',
  ]
  return ', '.join(str(part) for part in parts if part)


def warnings(
  comparison: Comparison, differences: Mapping[str, Difference]
) -> list[str]:
  """Lists problems: interrupted and diverged runs, missing intervals."""
  found = ['Interrupted: this comparison is incomplete.']
  found *= comparison.interrupted
  lost = dict.fromkeys(run.method for run in comparison.runs if run.diverged)
  why = [f' ({run.stopped})' for run in comparison.runs if run.stopped]
  if lost:
    found.append(
      f'{join(list(map(title, lost)))} diverged{"".join(why[:1])}; such a run '
      f'counts with its last {comparison.metric.title}, or with its worst one '
      f'if the last is not finite.'
    )
  groups: dict[str, list[str]] = {}
  for name, one in differences.items():
    if one.interval is None and name != comparison.base:
      groups.setdefault(one.reason, []).append(title(name))
  return found + [
    f'No interval for {join(names)}: {reason}.'
    for reason, names in groups.items()
  ]
