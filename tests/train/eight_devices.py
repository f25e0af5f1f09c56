"""A run on eight devices against one on one; in a process of its own."""

import dataclasses

import jax
import numpy as np
import pytest

from optax_sam.train.data import inputs
from optax_sam.train.distributed import sharding
from optax_sam.train.loop import checkpoints
from optax_sam.train.loop.trainer import Progress, Trainer
from optax_sam.train.optimizers import build
from tests.train import problems

STRICT = False  # Flax promotes ranks

STEPS = 4


def trainer(name, mesh=None, **changes):
  config = problems.train_config(
    model='cnn', batch_size=48, method=name, **changes
  )
  given = {'lambda_1': 1, 'lambda_2': 2.5} if name == 'ae_sam' else {}
  where = sharding.build(mesh, 48) if mesh else sharding.Placement()
  return Trainer(
    config,
    problems.small_task(config.model, config.batch_size),
    name,
    build.complete_settings(name, given, 0.05),
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
  ('name', 'execution', 'mesh'),
  [
    ('sgd', 'jit', 'data=8'),
    ('sam', 'jit', 'data=8'),
    ('sam', 'jit', 'fsdp=8'),
    ('ae_sam', 'jit', 'data=8'),
    ('ae_sam', 'host', 'data=4,fsdp=2'),
    ('k_sam', 'jit', 'data=4,fsdp=2'),
    ('mesa', 'jit', 'data=4,fsdp=2'),
  ],
)
def test_eight_devices_train_as_one_does(name, execution, mesh):
  results = []
  for where in (None, mesh):
    one = trainer(name, where, execution=execution, ema_decay=0.5)
    state, metrics = run(one, one.start(seed=0).state)
    evaluation = one._evaluation_row(Progress(state, STEPS))
    kept = (state.params, state.statistics, state.average, state.memory)
    results.append((kept, metrics, evaluation))
    devices = {len(leaf.devices()) for leaf in jax.tree.leaves(state)}
    assert devices == {8 if where else 1}
  assert_close(*results)


def test_eight_devices_validate_as_one_does():
  ends = []
  for mesh in (None, 'data=8', 'data=4,fsdp=2'):
    one = trainer('swad', mesh, steps=2 * 18, evaluations=1)  # two epochs
    assert one.epoch_steps == 18
    progress = one.start(seed=0)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, progress.state)
    one.run(progress, seed=0)
    assert shardings == jax.tree.map(lambda x: x.sharding, progress.state)
    params, statistics = one.solution(progress.state)
    ends.append((progress.validations, params, statistics))
  assert len(ends[0][0]) == 2
  for found in ends[1:]:
    assert_close(found, ends[0])


def of_few_examples(mesh):
  given = {'lag': 1, 'start_epoch': 0, 'weight': 2.0}
  task = problems.small_task('cnn', 48)
  train = {name: x[:96] for name, x in task.inputs.dataset.train.items()}
  few = dataclasses.replace(task.inputs.dataset, train=train)
  return Trainer(
    problems.train_config(model='cnn', batch_size=48, method='saf'),
    dataclasses.replace(task, inputs=inputs.InMemory(few, 48)),
    'saf',
    build.complete_settings('saf', given, None),
    sharding.build(mesh, 48) if mesh else sharding.Placement(),
  )


def test_a_table_of_examples_is_shared_by_the_devices(tmp_path):
  alone = of_few_examples(None)
  expected = run(alone, alone.start(seed=0).state)
  assert expected[1]['trajectory_loss'] > 0
  for mesh in ('data=8', 'data=4,fsdp=2'):
    one = of_few_examples(mesh)
    state, metrics = run(one, one.start(seed=0).state)
    for leaf in state.memory:
      assert leaf.addressable_shards[0].data.shape[0] == 1024 // 8
    found = state.params, state.memory, metrics
    assert_close(found, (expected[0].params, expected[0].memory, expected[1]))
  progress = Progress(state, STEPS)
  with checkpoints.Checkpoints(tmp_path, {}) as saved:
    saved.save(progress)
    found = saved.restore(alone.start(seed=0).state, pytest.fail)
  assert_close(found.state.memory, state.memory)
  assert len(found.state.memory.logits.devices()) == 1


def test_every_device_gets_its_rows_alone():
  one = trainer('sgd', mesh='data=8')
  batch = one.placement.batch(one.batch(0, seed=0))
  shards = batch['inputs'].addressable_shards
  assert {shard.data.shape for shard in shards} == {(6, 8, 8, 1)}
  np.testing.assert_array_equal(batch['labels'], one.batch(0, seed=0)['labels'])
  # The metrics of the test set must not depend on what divides it.
  whole = one.placement.whole(next(iter(one.task.inputs.test())))
  assert whole['inputs'].addressable_shards[0].data.shape[0] == 797


def test_a_run_goes_on_with_other_devices(tmp_path):
  eight, alone = trainer('sam', mesh='data=8'), trainer('sam', mesh=None)
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
    ('model=8', 48, "'model=8': 'model=8' must be data or fsdp=N"),
    ('data', 48, "'data' must be data or fsdp=N"),
    ('data=4,', 48, "'' must be data or fsdp=N"),
    ('fsdp=0', 48, "'fsdp=0' must be data or fsdp=N"),
    ('data=4,data=2', 48, 'names data twice'),
    ('data=4', 48, '--mesh data=4 must be of all devices: .* as in data=8'),
    ('data=2,fsdp=2', 48, 'multiply to 4, and here are 8'),
    ('data=8', 50, '--batch-size must be a multiple of 8, not 50'),
    ('data=4,fsdp=2', 12, '--batch-size must be a multiple of 8, not 12'),
  ],
)
def test_a_mesh_that_does_not_fit_is_one_line(text, batch_size, complaint):
  with pytest.raises(ValueError, match=complaint):
    sharding.build(text, batch_size)


def test_what_is_split_is_a_matter_of_shape():
  where = sharding.build('data=4,fsdp=2', 48)
  shapes = {
    'long': (64, 16),
    'last': (3, 3, 8, 64),
    'equal': (32, 32),
    'odd': (3, 1025),
    'small': (2, 510),
    'scalar': (),
  }
  abstract = {
    name: jax.ShapeDtypeStruct(shape, 'float32')
    for name, shape in shapes.items()
  }
  found = where.shardings({'of': abstract})['of']
  split = {
    name: split.shard_shape(shapes[name]) for name, split in found.items()
  }
  assert split == shapes | {
    'long': (32, 16),
    'last': (3, 3, 8, 32),
    'equal': (16, 32),
  }
  for axes in ('data=8', 'fsdp=8'):
    (split,) = jax.tree.leaves(
      sharding.build(axes, 48).shardings(abstract['long'])
    )
    assert (
      split.shard_shape((64, 16))
      == {
        'data=8': (64, 16),
        'fsdp=8': (8, 16),
      }[axes]
    )


def test_all_devices_are_used_if_they_divide_the_batch():
  assert sharding.build(None, 48).mesh.size == 8
  assert sharding.build(None, 50).mesh is None


@pytest.mark.parametrize('name', ['k_sam', 'subset_sam', 'esam', 'm_sam'])
def test_examples_that_are_picked_are_shared_by_the_devices(name):
  flops = {}
  for method in ('sgd', name):
    analysis = trainer(method, 'data=8').compile().cost_analysis()
    flops[method] = analysis['flops']
  # All of them on every device would be eight times as much.
  assert flops[name] < 2.6 * flops['sgd']
