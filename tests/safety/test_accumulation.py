"""Gradient accumulation: schedules, and gradients of all micro-batches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from tests.contracts import comparisons, table, training

A = np.diag([4.0, 2.0, 1.0])
W = jnp.array([3.0, -1.0, 2.0])


def loss_fn(w, batch):
  """Returns the mean over examples with individual factors."""
  return jnp.mean(batch) * 0.5 * w @ jnp.asarray(A, jnp.float32) @ w


def sam_by_hand(w, factor, rho):
  """Returns SAM's gradient of `factor` times the quadratic."""
  gradient = factor * A @ w
  return factor * A @ (w + rho * gradient / np.linalg.norm(gradient))


def steps(tx, w, batches, **kwargs):
  """Returns the parameters after each step."""
  step, state = jax.jit(optax_sam.make_step(loss_fn, tx, **kwargs)), tx.init(w)
  for batch in batches:
    w, state, _ = step(w, state, batch)
    yield np.asarray(w)


def test_schedules_count_optimizer_steps():
  rate = optax.linear_schedule(0.1, 0.0, 10)
  rho = optax_sam.rho_like_learning_rate(
    rate, rho_max=1.0, rho_min=0.0, lr_max=0.1, lr_min=0.0
  )
  tx = optax.chain(optax_sam.sam(rho), optax.sgd(rate))
  batches = jnp.linspace(0.5, 2.0, 12).reshape(3, 4)
  w = np.array(W, np.float64)
  for i, found in enumerate(steps(tx, W, batches, accumulate_steps=4)):
    factor = 1 - i / 10  # of the radius and of the learning rate: 1, 0.9, 0.8
    w = w - 0.1 * factor * sam_by_hand(w, np.mean(batches[i]), factor)
    np.testing.assert_allclose(found, w, rtol=1e-5)


def test_periods_count_optimizer_steps():
  tx = optax.chain(optax_sam.look_sam(period=3), optax.sgd(0.01))
  step = jax.jit(optax_sam.make_step(loss_fn, tx, accumulate_steps=4))
  w, state, ascended = W, tx.init(W), []
  for _ in range(6):
    w, state, output = step(w, state, jnp.ones(4))
    ascended.append(bool(output.metrics['ascended']))
  assert ascended == [True, False, False, True, False, False]
  assert int(output.metrics['step_count']) == 6


def test_both_gradients_include_all_micro_batches():
  tx = optax.chain(optax_sam.sam(0.5), optax.sgd(0.1))
  batch = jnp.array([1.0, 4.0])
  (found,) = steps(tx, W, [batch], accumulate_steps=2)
  expected = W - 0.1 * sam_by_hand(np.array(W), 2.5, 0.5)
  np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize('around', [True, False])
def test_multi_steps_with_a_method_raises(around):
  sam, sgd = optax_sam.sam(), optax.sgd(0.1)
  if around:
    accumulating = optax.MultiSteps(optax.chain(sam, sgd), 4)
    tx = accumulating.gradient_transformation()
  else:
    accumulating = optax.MultiSteps(sgd, lambda step: jnp.where(step > 9, 8, 1))
    tx = optax.chain(sam, accumulating.gradient_transformation())
  message = r'optax.MultiSteps with a method: [\s\S]*accumulate_steps=k'
  with pytest.raises(ValueError, match=message):
    next(steps(tx, W, [jnp.ones(4)]))


def test_multi_steps_of_one_step_or_without_a_method_is_accepted():
  sgd = optax.sgd(0.1)
  accumulating = optax.MultiSteps(sgd, 2).gradient_transformation()
  with jax.numpy_dtype_promotion('standard'):  # of Optax
    *_, found = steps(accumulating, W, [jnp.ones(1), 3 * jnp.ones(1)])
  expected = W - 0.1 * 2 * (A @ np.array(W))
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  one = optax.MultiSteps(
    optax.chain(optax_sam.sam(0.5), sgd),
    every_k_schedule=1,
    should_skip_update_fn=optax.skip_not_finite,
  ).gradient_transformation()
  with jax.numpy_dtype_promotion('standard'):
    (found,) = steps(one, W, [jnp.ones(1)])
  expected = W - 0.1 * sam_by_hand(np.array(W), 1.0, 0.5)
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def assert_equals_full_batch(name, parts, loss_fn=training.loss):
  """Compares three accumulated steps with steps on full batches."""
  program = training.program(name)
  step = jax.jit(
    optax_sam.make_step(
      loss_fn,
      program.tx,
      per_example_loss_fn=training.losses,
      accumulate_steps=parts,
    )
  )
  with jax.numpy_dtype_promotion('standard'):  # of injected settings
    start = training.start(program.tx)
    found = training.train(lambda *given: step(*given)[:2], start, range(3))
  expected = training.train(program.step, start, range(3))
  assert comparisons.types(found) == comparisons.types(expected)
  # A reused direction is the normalized difference of two close gradients,
  # which amplifies their rounding a hundred times.
  comparisons.assert_close(
    *map(comparisons.without_keys, (found, expected)), 5e-5
  )


# Micro-batches change how the engine computes gradients, not the rules.
@table.every_path()
def test_four_micro_batches_equal_the_full_batch(name):
  assert_equals_full_batch(name, 4)


@table.every_kind()
@pytest.mark.parametrize('parts', [1, 8])
def test_micro_batches_equal_the_full_batch(name, parts):
  assert_equals_full_batch(name, parts, None)


def test_micro_batches_need_not_divide_the_selected_examples():
  """Five rows in micro-batches of two: two micro-batches and one row."""
  tx = optax_sam.k_sam(ascent=5, descent=7)
  found = []
  for parts in (1, 4):
    step = optax_sam.make_step(
      None,
      optax.chain(tx, optax.sgd(0.1)),
      per_example_loss_fn=training.losses,
      accumulate_steps=parts,
    )
    start = training.start(optax.chain(tx, optax.sgd(0.1)))
    found.append(jax.jit(step)(*start, training.batch()))
  comparisons.assert_close(*found)


@pytest.mark.parametrize(
  'method',
  [
    optax_sam.sam(),
    optax_sam.ae_sam(total_steps=9),
    optax_sam.k_sam(ascent=1.0, descent=1.0),
  ],
)
def test_only_one_micro_batch_is_in_memory_at_a_time(method):
  losses = lambda w, x: jnp.sum(jnp.tanh(x[:, None] * w[None]), axis=1)
  tx, sizes = optax.chain(method, optax.sgd(0.1)), []
  w, x = jnp.ones(256), jnp.ones(4096)
  for parts in (1, 16):
    step = optax_sam.make_step(
      None, tx, per_example_loss_fn=losses, accumulate_steps=parts
    )
    compiled = jax.jit(step).lower(w, tx.init(w), x).compile()
    sizes.append(compiled.memory_analysis().temp_size_in_bytes)
  assert sizes[1] < sizes[0] / 4


@pytest.mark.parametrize('axes', ['Auto', 'Explicit'])
def test_a_sharded_batch_is_not_gathered(axes):
  kind = jax.sharding.AxisType[axes]
  mesh = jax.make_mesh((4,), ('data',), axis_types=(kind,))
  batch = jax.tree.map(lambda x: jnp.concatenate([x, x]), training.batch())
  batch = jax.device_put(batch, jax.NamedSharding(mesh, jax.P('data')))
  tx = optax.chain(optax_sam.sam(), optax.sgd(0.1))
  params = jax.device_put(training.start(tx), jax.NamedSharding(mesh, jax.P()))
  step = jax.jit(optax_sam.make_step(training.loss, tx, accumulate_steps=4))
  text = step.lower(*params, batch).compile().as_text()
  assert 'all-reduce' in text
  for moved in ('all-gather', 'all-to-all', 'collective-permute'):
    assert moved not in text


@pytest.mark.parametrize(
  ('change', 'parts', 'message'),
  [
    (lambda b: b, 3, 'accumulate_steps=3 for 8 examples: pass a divisor'),
    (lambda b: b, 16, 'accumulate_steps=16 for 8 examples'),
    (
      lambda b: {**b, 'step': jnp.float32(1)},
      2,
      r"examples on axis 0, got .*'step': \(\).*: turn lists into arrays",
    ),
    (
      lambda b: jax.tree.map(lambda x: x.tolist(), b),
      2,
      r"got leaves of shapes {'weight/0': \(\), .*: turn lists into arrays",
    ),
    (lambda b: {**b, 'x': b['x'][:4]}, 2, 'batch must be a pytree'),
    (
      lambda b: jax.tree.map(lambda x: x[:0], b),
      2,
      r'for 0 ex|must hold an ex',
    ),
  ],
)
def test_batches_that_cannot_be_split_raise(change, parts, message):
  tx = optax.chain(optax_sam.sam(), optax.sgd(0.1))
  step = optax_sam.make_step(training.loss, tx, accumulate_steps=parts)
  with pytest.raises(ValueError, match=message):
    jax.jit(step)(*training.start(tx), change(training.batch()))
