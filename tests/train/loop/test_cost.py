import time

from optax_sam.train.loop.cost import StepCost, Stopwatch
from tests.train.problems import finished, trainer


def test_the_cost_of_a_run_counts_skipped_and_other_steps():
  cost = StepCost(ascended=2.0, skipped=1.0)
  assert cost.until(10, 3) == 3 * 2 + 7
  assert cost.mean(0.25) == 1.25


def test_a_stopwatch_excludes_pauses(monkeypatch):
  now = iter([0.0, 3.0, 103.0, 105.0])
  monkeypatch.setattr(time, 'perf_counter', lambda: next(now))
  watch = Stopwatch()
  with watch.paused():
    assert watch.seconds == 3
  assert watch.seconds == 5


def test_rows_have_gradients_and_seconds_if_the_cost_is_known():
  one = trainer('ae_sam', given={'lambda_1': 1, 'lambda_2': 2.5})
  one.cost = StepCost(ascended=2.0, skipped=1.0)
  progress = finished(one)
  for rows in (progress.log, progress.evaluations):
    seconds = [row['seconds'] for row in rows]
    assert seconds[0] > 0
    assert seconds == sorted(seconds)
  taken = {row['step']: row['second_gradients'] for row in progress.log}
  assert 0 < taken[12] < 12
  for row in progress.log + progress.evaluations:
    assert row['gradients'] == row['step'] + taken[row['step']]
