"""The HTML page of a comparison."""

from optax_sam.train.reports import formats, page, wording
from optax_sam.train.reports.pictures import picture_groups
from optax_sam.train.reports.results import Comparison, summarize
from optax_sam.train.reports.svg import method_styles, page_style


def render_page(comparison: Comparison) -> str:
  """Renders the report of a comparison as a page of HTML.

  Args:
    comparison: The measured comparison.

  Returns:
    The page; see `page.render`.
  """
  rows = summarize(comparison)
  styles = method_styles(comparison.methods, comparison.base)
  with page_style():
    groups = picture_groups(comparison, rows, styles)
  return page.render(
    'comparison.html',
    groups,
    headline=wording.headline(comparison, rows),
    setup=wording.setup(comparison),
    findings=wording.findings(comparison, rows),
    warnings=wording.warnings(comparison, rows),
    base=comparison.base,
    started=comparison.started.replace('T', ' '),
    radius=formats.number(comparison.sharpness_radius),
    rows=[
      formats.cells(row) | {'marker': page.marker(styles[row.method])}
      for row in rows
    ],
    reading=wording.reading(comparison),
    command=comparison.command,
    facts=_facts(comparison),
  )


def _facts(
  comparison: Comparison,
) -> list[tuple[str, list[tuple[str, str]]]]:
  run = [
    ('started', comparison.started.replace('T', ' ')),
    ('duration', formats.duration(comparison.seconds)),
    ('seeds', ', '.join(map(str, comparison.seeds))),
    ('steps of a run', f'{comparison.total_steps:,}'),
    ('test examples', f'{comparison.test_examples:,}'),
    (
      'radius of the SAM sharpness',
      formats.number(comparison.sharpness_radius),
    ),
  ]
  methods = [
    (method, page.in_one_line(comparison.runs_of(method)[0].settings))
    for method in comparison.methods
  ]
  groups = [
    ('Run', run),
    ('Settings of all runs', list(page.pairs(comparison.settings).items())),
    ('Settings of the methods', methods),
    ('Versions', list(comparison.versions.items())),
    ('Machine', list(comparison.machine.items())),
  ]
  return [(title, facts) for title, facts in groups if facts]
