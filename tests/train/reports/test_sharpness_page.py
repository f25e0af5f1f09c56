import dataclasses
import math

import numpy as np
import pytest

from optax_sam import landscape
from optax_sam.train.config import configs
from optax_sam.train.reports import sharpness_report, sharpness_wording
from optax_sam.train.reports.measurements import Measurements
from tests.train.reports.comparisons import Page

USUAL = {
  'test_accuracy': 0.9,
  'sam_sharpness': 0.1,
  'sam_sharpness_20_steps': 0.2,
  'adaptive_sharpness': 0.3,
  'eigenvalue_1': 4.0,
  'trace': 50.0,
  'trace_standard_error': 3.0,
}
POSITIONS = np.linspace(-1, 1, 41)


def made(**figures):
  """Measurements of made runs, by what is unusual about each."""
  settings = {'dataset': 'digits', 'model': 'cnn', 'seed': 0}
  line = landscape.Line(POSITIONS, POSITIONS**2)
  return Measurements(
    config=configs.SharpnessConfig(runs=(), eigenvalues=1),
    command='optax-sam sharpness',
    settings=dict.fromkeys(figures, settings),
    figures={name: USUAL | changes for name, changes in figures.items()},
    lines=dict.fromkeys(figures, line),
    versions={'jax': '0.10.0'},
    machine={'device': 'cpu'},
    started='2025-01-02T03:04:05',
    seconds=1.0,
  )


@pytest.mark.parametrize(
  ('figures', 'flattest'),
  [
    ({'sgd': {}, 'sam': {'eigenvalue_1': 1.0}}, {'eigenvalue_1': 'sam'}),
    # A trace that is lower by less than two standard errors says nothing.
    ({'sgd': {'trace': 42.0}, 'sam': {}}, {}),
    ({'sgd': {'trace': 10.0}, 'sam': {}}, {'trace': 'sgd'}),
    ({'sgd': {'eigenvalue_1': math.nan}, 'sam': {'eigenvalue_1': 3.0}}, {}),
    ({'sgd': {}}, {}),
  ],
)
def test_the_flattest_run_is_named_by_the_measures_that_tell(figures, flattest):
  found = {
    key: sharpness_wording._flattest(made(**figures), key) for key in USUAL
  }
  assert {key: name for key, name in found.items() if name} == flattest
  assert bool(sharpness_wording.findings(made(**figures))) == bool(flattest)


def test_figures_that_are_not_finite_are_named_and_shown_as_missing(tmp_path):
  nothing = dict.fromkeys(USUAL, math.nan)
  lost = made(sgd={}, sam=nothing)
  no_line = landscape.Line(POSITIONS, np.full(41, np.nan))
  lost = dataclasses.replace(lost, lines=lost.lines | {'sam': no_line})
  sharpness_report.write(lost, tmp_path)
  page = Page((tmp_path / 'report.html').read_text('utf-8'))
  assert 'sam (test accuracy, ' in page.text
  assert not any(word in page.text for word in ('nan', 'inf '))
  assert 'sam not finite' in page.landscape()
  alone = dataclasses.replace(made(sam=nothing), lines={'sam': no_line})
  sharpness_report.write(alone, tmp_path)
  text = (tmp_path / 'report.html').read_text('utf-8')
  assert 'Loss along one random direction' not in text
