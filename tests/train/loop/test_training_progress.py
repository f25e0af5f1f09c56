import math

import pytest

from optax_sam.train.loop.training_progress import divergence
from tests.train.problems import finished, trainer

NAN, INF = math.nan, math.inf


def rows(losses, norm=1.0):
  return [
    {'step': 10 * number, 'loss': loss, 'parameter_norm': norm}
    for number, loss in enumerate(losses, 1)
  ]


@pytest.mark.parametrize(
  ('losses', 'steps', 'reason'),
  [
    ([2.3, 1.0, 0.5], 300, ''),
    ([2.3, NAN], 300, ''),  # a single row may be an overflow
    ([2.3, NAN, 1.0, INF], 300, ''),
    ([2.3, NAN, INF], 300, 'not finite'),
    ([NAN, NAN], 300, 'not finite'),
    ([2.3, 1.0, NAN], 30, 'not finite'),  # the last row of the run
    ([NAN], 10, 'not finite'),
    # Above 2.3 + 10 * 2.3 for a tenth of 200 steps, that is from step 80 on.
    ([2.3] * 7 + [26.0] * 3, 200, 'at first 2.3, has been above 25.3'),
    ([2.3] * 8 + [26.0] * 2, 200, ''),
    ([2.3] * 7 + [26.0, 25.0, 26.0], 200, ''),
    ([2.3] * 7 + [26.0] * 3, 1000, ''),  # not for long
    ([26.0] * 10, 200, ''),
    # A start near or below zero has no relative rise.
    ([1e-4] * 7 + [0.1] * 3, 200, ''),
    ([-5.0] * 7 + [50.0] * 3, 200, 'above 45'),
  ],
)
def test_a_run_diverges_if_its_loss_is_not_finite_or_high_for_long(
  losses, steps, reason
):
  found = divergence(rows(losses), steps)
  assert bool(found) == bool(reason)
  assert reason in found


@pytest.mark.parametrize('norm', [NAN, INF])
def test_parameters_that_are_not_finite_are_a_divergence_at_once(norm):
  assert 'parameters' in divergence(rows([1.0], norm), 300)


def test_a_run_that_diverged_is_evaluated_and_stopped():
  one = trainer('sgd', learning_rate=1e30, steps=40)
  steps = []
  progress = finished(one, after_step=lambda now: steps.append(now.step))
  assert 'not finite' in progress.stopped
  assert progress.step < 12
  assert steps == list(range(1, progress.step + 1))
  assert progress.evaluations[-1]['step'] == progress.step
  assert progress.log[-1]['step'] == progress.step
