"""The HTML page of one run of `optax-sam train`."""

import math
import pathlib

from optax_sam.train.config import configs
from optax_sam.train.reports import (
  comparison_page,
  display,
  formats,
  page,
  training_figures,
)
from optax_sam.train.reports.results import Comparison


def write(training: Comparison, path: pathlib.Path) -> None:
  """Writes the page of one run, atomically.

  Args:
    training: A comparison of one method with one run.
    path: The file, which is replaced.
  """
  temporary = path.with_suffix('.partial')
  temporary.write_text(render_page(training), encoding='utf-8')
  temporary.replace(path)


def render_page(training: Comparison) -> str:
  """Renders the report of one run as a page of HTML.

  Args:
    training: A comparison of one method with one run.

  Returns:
    The page; see `page.render`.
  """
  (run,) = training.runs
  # Alone, the method has a colour; the base has that of the text.
  styles = display.styles([run.method], base='')
  style = styles[run.method]
  metric = training.metric
  name = formats.name_of(metric)
  unit = '%' if metric.percent else ''
  dataset = training.settings.get('dataset', 'own data')
  score = run.last(f'test_{metric.name}')
  said = f'{style.label} on {dataset}'
  if math.isfinite(score):
    said += f': {formats.score(score, metric)}{unit} test {name}'
  train_score = run.last(f'train_{metric.name}')
  numbers = [
    ('Test loss', run.last('test_loss')),
    ('SAM sharpness', run.sharpness.get('sam_sharpness', math.nan)),
    ('Top eigenvalue', run.sharpness.get('top_eigenvalue', math.nan)),
  ]
  cards = [
    (title, f'{formats.score(value, metric)}{unit}', '')
    for title, value in (
      (f'Test {name}', score),
      (f'Training {name}', train_score),
    )
    if math.isfinite(value)
  ]
  cards += [
    (title, formats.number(value), '')
    for title, value in numbers
    if math.isfinite(value)
  ]
  if math.isfinite(run.seconds):
    cards.append(('Time of the run', formats.duration(run.seconds), ''))
  reason = run.stopped or 'the loss is not finite'
  warnings = [f'Diverged: {reason}.'] if run.diverged else []
  return page.render(
    'run.html',
    [
      ('Learning curves', training_figures.learning_curves(training, styles)),
      ('Course of training', training_figures.course(training, styles)),
    ],
    styles,
    title=f'optax-sam: {style.label} on {dataset}, {training.started[:10]}',
    headline=said,
    setup=f'{formats.count(run.steps, "step")} with seed {run.seed}.',
    findings=[],
    warnings=warnings,
    cards=cards,
    started=formats.moment(training.started),
    command=training.command,
    facts=comparison_page.facts(training, configs.TrainConfig()),
    papers=display.papers(styles),
  )
