import time

import jax
import jax.numpy as jnp
import pytest

from optax_sam.train.loop import cost
from optax_sam.train.loop.cost import StepCost
from tests.train.problems import finished, trainer


def test_the_cost_of_a_run_counts_skipped_and_other_steps():
  cost = StepCost(ascended=2.0, skipped=1.0)
  assert cost.until(10, 3) == 3 * 2 + 7
  assert cost.until(1, 0.25) == 1.25


def test_rows_have_gradients_and_seconds_if_the_cost_is_known():
  one = trainer('ae_sam', given={'lambda_1': 1, 'lambda_2': 2.5})
  one.cost = StepCost(ascended=2.0, skipped=1.0)
  finished(one)  # compiles what is measured
  pause, began = 0.02, time.perf_counter()
  progress = finished(one, after_step=lambda _: time.sleep(pause))
  for rows in (progress.log, progress.evaluations):
    seconds = [row['seconds'] for row in rows]
    assert seconds[0] > 0
    assert seconds == sorted(seconds)
    assert seconds[-1] < time.perf_counter() - began - 12 * pause
  taken = {row['step']: row['second_gradients'] for row in progress.log}
  assert 0 < taken[12] < 12
  for row in progress.log + progress.evaluations:
    assert row['gradients'] == row['step'] + taken[row['step']]


@pytest.mark.parametrize(
  ('function', 'times'),
  [
    (lambda w, x: w @ x, 1),
    (lambda _, x: x, 1),
    (lambda w, x: jax.lax.scan(lambda c, _: (w @ c, None), x, length=5)[0], 5),
    # One product outside of the loop, seven in it.
    (lambda w, x: jax.lax.fori_loop(0, 7, lambda _, c: w @ c, w @ x), 4),
    # The costlier branch of a conditional counts.
    (
      lambda w, x: jax.lax.cond(
        x[0] > 0,
        lambda: jax.lax.scan(lambda c, _: (w @ c, None), x, length=3)[0],
        lambda: x,
      ),
      3,
    ),
  ],
)
def test_operations_in_loops_are_repeated(function, times):
  w, x = jnp.ones((4, 4)), jnp.ones(4)
  jaxpr = jax.make_jaxpr(jax.jit(function))(w, x)
  assert cost.repetition(jaxpr) == times


def test_a_convolution_has_the_operations_that_xla_counts():
  image, kernel = jnp.ones((2, 9, 9, 3)), jnp.ones((3, 3, 3, 8))

  def function(image, kernel):
    return jax.lax.conv_general_dilated(
      image, kernel, (2, 2), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )

  found = cost._operations(
    jax.make_jaxpr(function)(image, kernel), repeats=True
  )
  compiled = jax.jit(function).lower(image, kernel).compile()
  assert found == compiled.cost_analysis()['flops']


def test_micro_batches_cost_what_their_examples_cost():
  whole, parts = (
    trainer('m_sam', given={'micro_batch_size': size}) for size in (50, 10)
  )
  found = [
    one.compile().cost_analysis()['flops'] * one.repetition
    for one in (whole, parts)
  ]
  assert found[1] == pytest.approx(found[0], rel=0.15)
