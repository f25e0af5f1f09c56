"""The plots of the pages with captions."""

import dataclasses
from collections.abc import Mapping, Sequence

from optax_sam.landscape import Line
from optax_sam.train.reports import (
  curve_plots,
  formats,
  random_lines,
  row_plots,
)
from optax_sam.train.reports.results import Comparison, Summary
from optax_sam.train.reports.svg import Style


@dataclasses.dataclass(frozen=True)
class Picture:
  """A plot with its texts.

  Attributes:
    title: Title of the plot.
    caption: Explanation of the plot.
    alternative: Text alternative for screen readers.
    svg: The plot as SVG; None if there is no data.
  """

  title: str
  caption: str
  alternative: str
  svg: str | None


def picture_groups(
  comparison: Comparison, rows: Sequence[Summary], styles: dict[str, Style]
) -> list[tuple[str, list[Picture]]]:
  """Draws all plots.

  Args:
    comparison: The measured comparison.
    rows: The summary of the comparison.
    styles: Style by method.

  Returns:
    The plots under their headings.
  """
  base = comparison.base
  pointing = left_out = ends = leaves = ''
  if any(row.diverged for row in rows):
    pointing = ' An arrow points to a diverged method outside the axis.'
    left_out = ' Methods with a diverged run are left out.'
    ends = ' A curve ends where its first run diverged.'
    leaves = ' A diverged method may leave the axis.'
  radius = formats.number(comparison.sharpness_radius)
  by_method = {row.method: formats.cells(row) for row in rows}

  def values(*keys: str) -> str:
    return '; '.join(
      f'{method} {" ".join(cells[key] for key in keys)}'.strip()
      for method, cells in by_method.items()
    )

  return [
    (
      'Accuracy',
      [
        Picture(
          f'Difference to {base}',
          'Mean of the paired differences, with its 95% interval; small'
          ' dots are seeds. Filled marker and thick line: the interval excludes'
          ' 0. Open marker and thin line: it contains 0, or there is none.'
          + pointing,
          'Difference in test accuracy, percentage points: '
          + values('difference', 'interval', 'verdict'),
          row_plots.differences(rows, styles),
        ),
        Picture(
          'Accuracy against time',
          'Up is more accurate, left is faster. Lines: standard deviation over'
          ' seeds, quartiles of the time.' + left_out,
          'Test accuracy in percent and time per step: '
          + values('accuracy', 'time'),
          curve_plots.accuracy_against_time(rows, styles),
        ),
      ],
    ),
    (
      'Learning curves',
      [
        Picture(
          'Training loss',
          'Loss at the unperturbed parameters: mean over seeds, shaded from the'
          ' smallest to the largest. Averaged over'
          ' short spans of steps.' + ends,
          'Training loss over steps, a curve for each method.',
          curve_plots.training_loss(comparison, styles),
        ),
        Picture(
          'Test accuracy',
          'Mean over seeds, shaded from the smallest to the largest. The range'
          ' of the axis ignores the first quarter of the steps.' + leaves,
          'Test accuracy over steps. At the end, in percent: '
          + values('accuracy'),
          curve_plots.test_accuracy(comparison, styles),
        ),
      ],
    ),
    (
      'Cost',
      [
        Picture(
          'Perturbed gradients',
          'Fraction of the steps that computed a perturbed gradient.',
          'Fraction of steps with a perturbed gradient. In total, in percent: '
          + values('second_gradients'),
          curve_plots.second_gradients(comparison, styles),
        ),
        Picture(
          'Time per step',
          f'Relative to {base} in the same round: median, and a line from the'
          ' first to the third quartile.',
          f'Time per step relative to {base}: ' + values('time', 'quartiles'),
          row_plots.step_time(rows, styles),
        ),
      ],
    ),
    (
      'Sharpness at the end of training',
      [
        Picture(
          'SAM sharpness',
          f'How much the loss rises at radius {radius} along the gradient.'
          ' Mean; small dots are seeds. Lower is flatter.',
          'SAM sharpness: ' + values('sam_sharpness'),
          row_plots.sharpness(
            comparison, styles, 'sam_sharpness', 'rise of the loss'
          ),
        ),
        Picture(
          'Top eigenvalue of the Hessian',
          'Curvature in the steepest direction. Mean; small dots are seeds.'
          ' Lower is flatter.',
          'Top eigenvalue of the Hessian: ' + values('top_eigenvalue'),
          row_plots.sharpness(
            comparison, styles, 'top_eigenvalue', 'top eigenvalue'
          ),
        ),
      ],
    ),
    ('Landscape', [_landscape(comparison, styles)]),
  ]


def along_one_line(
  lines: Mapping[str, Line],
  styles: Mapping[str, Style],
  *,
  examples: str,
  of_whom: str,
  caveat: str,
) -> Picture:
  """Draws the loss along one random direction through several solutions.

  Args:
    lines: The lines by name.
    styles: The styles by name.
    examples: The examples of the loss, for the caption.
    of_whom: The owner of each curve, after 'for', for the caption.
    caveat: The limits of the plot, for the caption.

  Returns:
    The plot.
  """
  return Picture(
    'Loss along one random direction',
    f'Training loss on {examples}, in evaluation mode, for {of_whom}: at the'
    ' solution in the middle, and around it along the same random'
    ' direction, scaled filter by filter to its own weights. At a distance of'
    ' 1 each filter has moved by its own length. A wide curve is flat along'
    f' this direction; curves may leave the plot at the top. {caveat}',
    random_lines.in_words(lines),
    random_lines.plot(lines, styles),
  )


def _landscape(comparison: Comparison, styles: dict[str, Style]) -> Picture:
  measured = [run for run in comparison.runs if run.landscape]
  seed = min((run.seed for run in measured), default=0)
  count = comparison.settings.get('sharpness_examples')
  number = '' if count is None else f'{count} '
  return along_one_line(
    {
      run.method: random_lines.from_rows(run.landscape)
      for run in measured
      if run.seed == seed
    },
    styles,
    examples=f'the {number}examples that sharpness is measured on',
    of_whom=f'the run of each method with seed {seed}',
    caveat='One direction and one seed: others may look different.',
  )
