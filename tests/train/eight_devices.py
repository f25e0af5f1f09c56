"""A run on eight devices against one on one; in a process of its own."""

import jax
import numpy as np
import pytest

from optax_sam.train import checkpoints, loop, methods, placement
from tests.train import problems

STRICT = False  # Flax promotes ranks

STEPS = 4


def trainer(name, mesh, **changes):
  config = problems.train_config(
    model='cnn', batch_size=48, method=name, **changes
  )
  given = {'lambda_1': 1, 'lambda_2': 2.5} if name == 'ae_sam' else {}
  where = placement.build('data=8', 48) if mesh else placement.Placement()
  return loop.Trainer(
    config,
    problems.small_task(config.model, config.batch_size),
    name,
    methods.complete_settings(name, given, 0.05),
    where,
  )


def run(one, state, start=0):
  metrics = {}
  for number in range(start, start + STEPS):
    state, metrics = one.step(state, one.batch(number, seed=0))
  return state, metrics


def assert_close(found, expected):
  for one, other in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize(
  ('name', 'execution'),
  [
    ('sgd', 'jit'),
    ('sam', 'jit'),
    ('ae_sam', 'jit'),
    ('ae_sam', 'host'),
    ('k_sam', 'jit'),
  ],
)
def test_eight_devices_train_as_one_does(name, execution):
  results = []
  for mesh in (False, True):
    one = trainer(name, mesh, execution=execution, ema_decay=0.5)
    state, metrics = run(one, one.start(seed=0).state)
    evaluation = one._evaluation_row(loop.Progress(state, STEPS))
    kept = (state.params, state.statistics, state.average)
    results.append((kept, metrics, evaluation))
    devices = {len(leaf.devices()) for leaf in jax.tree.leaves(state)}
    assert devices == {8 if mesh else 1}
  assert_close(*results)


def test_every_device_gets_its_rows_alone():
  one = trainer('sgd', mesh=True)
  batch = one.placement.batch(one.batch(0, seed=0))
  shards = batch['inputs'].addressable_shards
  assert {shard.data.shape for shard in shards} == {(6, 8, 8, 1)}
  np.testing.assert_array_equal(batch['labels'], one.batch(0, seed=0)['labels'])
  # The metrics of the test set must not depend on what divides it.
  whole = one.placement.batch(next(iter(one.task.inputs.test())))
  assert whole['inputs'].addressable_shards[0].data.shape[0] == 797


def test_a_run_goes_on_with_other_devices(tmp_path):
  eight, alone = trainer('sam', mesh=True), trainer('sam', mesh=False)
  progress = eight.start(seed=0)
  progress.state, progress.step = run(eight, progress.state)[0], STEPS
  with checkpoints.Checkpoints(tmp_path, {}) as saved:
    saved.save(progress)
    found = saved.restore(alone.start(seed=0).state, pytest.fail)
  assert_close(
    run(alone, found.state, STEPS)[0].params,
    run(eight, progress.state, STEPS)[0].params,
  )


@pytest.mark.parametrize(
  ('text', 'batch_size', 'complaint'),
  [
    ('model=8', 48, "--mesh 'model=8' must read data=N, with N=8 devices"),
    ('data', 48, 'must read data=N'),
    ('data=4', 48, '--mesh data=4 must be of all devices: data=8'),
    ('data=8', 50, '--batch-size must be a multiple of 8, not 50'),
  ],
)
def test_a_mesh_that_does_not_fit_is_one_line(text, batch_size, complaint):
  with pytest.raises(ValueError, match=complaint):
    placement.build(text, batch_size)


def test_all_devices_are_used_if_they_divide_the_batch():
  assert placement.build(None, 48).mesh.size == 8
  assert placement.build(None, 50).mesh is None
