"""The HTML page of a comparison."""

from collections.abc import Mapping, Sequence

from optax_sam.train.config import configs
from optax_sam.train.reports import (
  display,
  formats,
  page,
  random_lines,
  score_figures,
  solution_figures,
  tables,
  training_figures,
  tuning_figures,
  wording,
)
from optax_sam.train.reports.display import Style
from optax_sam.train.reports.figures import Figure
from optax_sam.train.reports.results import Comparison
from optax_sam.train.reports.summary import Summary, finite, summarize

Facts = list[tuple[str, list[tuple[str, str]]]]


def render_page(comparison: Comparison) -> str:
  """Renders the report of a comparison as a page of HTML.

  Args:
    comparison: The measured comparison.

  Returns:
    The page; see `page.render`.
  """
  summary = summarize(comparison)
  styles = display.styles(comparison.methods, comparison.base)
  metric = comparison.metric
  dataset = comparison.settings.get('dataset', 'own data')
  date = comparison.started.partition('T')[0]
  methods = formats.count(len(styles), 'method')
  examples = comparison.test_examples
  worth = f'{100 / examples:.2g}' if metric.percent and examples else ''
  holding_out = [
    styles[name].label
    for name in styles
    if any(run.validations for run in comparison.runs_of(name))
  ]
  return page.render(
    'comparison.html',
    _figures(comparison, summary, styles),
    styles,
    downloads={
      'results.csv': tables.results_csv(comparison),
      'results.md': tables.markdown(comparison, summary, styles),
      'results.tex': tables.latex(comparison, summary, styles),
    },
    base=comparison.base,
    title=f'optax-sam: {methods} on {dataset}, {date}',
    headline=wording.headline(comparison, summary),
    setup=wording.setup(comparison),
    findings=wording.findings(comparison, summary),
    warnings=wording.warnings(comparison, summary),
    cards=_cards(comparison, summary),
    started=formats.moment(comparison.started),
    base_label=display.title(comparison.base),
    radius=formats.number(comparison.sharpness_radius),
    metric=formats.name_of(metric),
    percent=metric.percent,
    rows=[{'row': row, 'cells': formats.cells(row, metric)} for row in summary],
    fit=tables.fit(comparison, styles),
    seeds=comparison.seeds,
    by_seed=tables.by_seed(comparison, styles),
    example_worth=worth,
    holding_out=formats.join(holding_out),
    command=comparison.command,
    facts=facts(comparison, configs.CompareConfig()),
    papers=display.papers(styles),
  )


def facts(comparison: Comparison, default: configs.Experiment) -> Facts:
  """Returns what the numbers depend on: settings, versions, machine.

  Args:
    comparison: The measured comparison.
    default: The default configuration of the command.

  Returns:
    Names and values under headings; settings with their default are left out.
  """
  defaults = configs.settings(default)
  changed = [
    (name.replace('_', ' '), page.in_words(value))
    for name, value in comparison.settings.items()
    if name != 'methods' and value != defaults.get(name)
  ]
  run = [
    ('started', formats.moment(comparison.started)),
    *(
      [('duration', formats.duration(comparison.seconds))]
      if finite([comparison.seconds])
      else []
    ),
    ('seeds', ', '.join(map(str, comparison.seeds))),
    ('steps of a run', f'{comparison.total_steps:,}'),
    ('equal for all methods', comparison.budget),
    ('test examples', f'{comparison.test_examples:,}'),
    (
      'radius of the SAM sharpness',
      formats.number(comparison.sharpness_radius),
    ),
  ]
  methods = [
    (display.title(name), page.in_one_line(of[0].settings))
    for name in comparison.methods
    if (of := comparison.runs_of(name))
  ]
  groups = [
    ('Run', run),
    ('Settings other than the defaults', changed),
    ('Settings of the methods', methods),
    ('Versions', list(comparison.versions.items())),
    ('Machine', list(comparison.machine.items())),
  ]
  return [(title, found) for title, found in groups if found]


def _figures(
  comparison: Comparison,
  summary: Sequence[Summary],
  styles: Mapping[str, Style],
) -> list[tuple[str, list[Figure]]]:
  radius = formats.number(comparison.sharpness_radius)
  measured = [run for run in comparison.runs if run.landscape]
  seed = min((run.seed for run in measured), default=0)
  found = {
    run.method: random_lines.from_rows(run.landscape)
    for run in measured
    if run.seed == seed
  }
  number = comparison.settings.get('sharpness_examples')
  count = '' if number is None else f'{number} '
  return [
    (
      'Score and cost',
      [
        score_figures.differences(comparison, summary, styles),
        score_figures.tradeoff(comparison, summary, styles),
        score_figures.step_time(summary, styles),
        score_figures.total_time(comparison, styles),
      ],
    ),
    ('Learning curves', training_figures.learning_curves(comparison, styles)),
    ('Tuning', tuning_figures.sensitivity(comparison, styles)),
    (
      'Sharpness and landscape',
      [
        solution_figures.sharpness(
          comparison,
          styles,
          'sam_sharpness',
          'SAM sharpness',
          f'Rise of the loss at radius {radius} along the gradient.',
        ),
        solution_figures.sharpness(
          comparison,
          styles,
          'top_eigenvalue',
          'Top eigenvalue of the Hessian',
          'Curvature in the steepest direction.',
        ),
        *solution_figures.planes(comparison, styles),
        solution_figures.lines(
          found,
          styles,
          examples=f'the {count}examples that sharpness is measured on',
          caveat=f'One direction and seed {seed}: others may look different.',
        ),
        solution_figures.spectra(comparison, styles),
      ],
    ),
    ('Course of training', training_figures.course(comparison, styles)),
  ]


def _cards(
  comparison: Comparison, summary: Sequence[Summary]
) -> list[tuple[str, str, str]]:
  """Returns title, method and reason of each card."""
  metric = comparison.metric
  sign = 1 if metric.higher_is_better else -1
  scored = [row for row in summary if row.score is not None]
  if not scored:
    return []
  best = next(row for row in scored if row.method == comparison.best())
  unit = '%' if metric.percent else ''
  reason = f'{formats.score(best.score, metric)}{unit} test'
  reason += f' {formats.name_of(metric)}'
  if not best.is_base:
    verdict = formats.verdict_of(best.difference, metric)
    base = display.title(comparison.base)
    compared = {'better': 'than', 'worse': 'than'}.get(verdict, 'to')
    reason += f'; {verdict} {compared} {base}'
  cards = [('Best score', best.method, reason)]
  gains = [
    (sign * row.difference.mean / row.relative_time, row)
    for row in summary
    if row.difference.mean is not None
    and row.relative_time
    and row.difference.significant
    and sign * row.difference.mean > 0
  ]
  if gains and comparison.budget != 'seconds':
    _, row = max(gains, key=lambda entry: entry[0])
    gain = formats.gain(row.difference.mean or 0.0, metric)
    reason = f'{gain}{formats.unit(metric)} for'
    reason += f' {formats.ratio(row.relative_time)} the time per step'
    cards.append(('Best gain for its time', row.method, reason))
  flat = [
    (row.sam_sharpness, row)
    for row in summary
    if finite([row.sam_sharpness]) and not row.diverged
  ]
  if len(flat) > 1:
    value, row = min(flat, key=lambda entry: entry[0] or 0.0)
    reason = f'SAM sharpness {formats.number(value)}'
    cards.append(('Flattest', row.method, reason))
  return [(title, display.title(name), why) for title, name, why in cards]
