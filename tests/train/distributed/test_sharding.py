"""Runs on eight devices equal runs on one device."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from optax_sam.train.data import inputs
from optax_sam.train.distributed import sharding
from optax_sam.train.loop.trainer import Progress, Trainer
from optax_sam.train.optimizers import build
from tests.train import problems

STEPS = 4


assert_close = functools.partial(problems.assert_close, rtol=2e-3, atol=2e-5)

GIVEN = {
  'ae_sam': {'lambda_1': 1, 'lambda_2': 2.5},
  'mesa': {'decay': 0.8, 'start_epoch': 0, 'weight': 2.0},
  'saf': {'lag': 1, 'start_epoch': 0, 'weight': 2.0},
}


def trainer(name, mesh=None, **changes):
  """Returns a trainer with two steps per epoch."""
  config = problems.train_config(
    model='cnn', batch_size=48, method=name, **changes
  )
  task = problems.small_task('cnn', 48)
  train = {name: x[:96] for name, x in task.inputs.dataset.train.items()}
  few = dataclasses.replace(task.inputs.dataset, train=train)
  return Trainer(
    config,
    dataclasses.replace(task, inputs=inputs.InMemory(few, 48)),
    name,
    build.complete_settings(name, GIVEN.get(name, {}), 0.05),
    sharding.build(mesh, 48) if mesh else sharding.Placement(),
  )


def run(one, state):
  metrics = {}
  for number in range(STEPS):
    state, metrics = one.step(state, one.batch(number, seed=0))
  return state, metrics


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
  ('name', 'execution', 'mesh'),
  [
    ('sam', 'jit', 'data=4,fsdp=2'),
    pytest.param('sam', 'jit', 'fsdp=8', marks=SLOW),
    pytest.param('ae_sam', 'jit', 'data=8', marks=SLOW),
    pytest.param('ae_sam', 'host', 'data=4,fsdp=2', marks=SLOW),
    pytest.param('k_sam', 'jit', 'data=4,fsdp=2', marks=SLOW),
    pytest.param('mesa', 'jit', 'data=4,fsdp=2', marks=SLOW),
    pytest.param('saf', 'jit', 'data=8', marks=SLOW),
    pytest.param('saf', 'jit', 'data=4,fsdp=2', marks=SLOW),
  ],
)
def test_eight_devices_train_as_one_does(name, execution, mesh):
  results = []
  for where in (None, mesh):
    one = trainer(name, where, execution=execution, ema_decay=0.5)
    start = one.start(seed=0).state
    shardings = jax.tree.map(lambda leaf: leaf.sharding, start)
    state, metrics = run(one, start)
    assert shardings == jax.tree.map(lambda leaf: leaf.sharding, state)
    devices = {len(leaf.devices()) for leaf in jax.tree.leaves(state)}
    assert devices == {8 if where else 1}
    evaluation = one._evaluation_row(Progress(state, STEPS))
    kept = (state.params, state.statistics, state.average, state.memory)
    results.append((kept, metrics, evaluation))
  assert_close(*results)
  if name in ('saf', 'mesa'):
    assert metrics['trajectory_loss'] > 0
  if name == 'saf':  # its table is split over the devices
    for leaf in state.memory:
      assert leaf.addressable_shards[0].data.shape[0] == 1024 // 8


@pytest.mark.slow
def test_eight_devices_validate_as_one_does():
  ends = []
  for mesh in (None, 'data=8', 'data=4,fsdp=2'):
    one = trainer('swad', mesh, steps=4, evaluations=1)
    assert one.epoch_steps == 1  # without the held-out examples
    progress = problems.finished(one)
    params, statistics = one.solution(progress.state)
    ends.append((progress.validations, params, statistics))
  assert len(ends[0][0]) == 4
  for found in ends[1:]:
    assert_close(found, ends[0])


def test_every_device_gets_only_its_rows():
  one = trainer('sgd', mesh='data=8')
  batch = one.placement.batch(one.batch(0, seed=0))
  shards = batch['inputs'].addressable_shards
  assert {shard.data.shape for shard in shards} == {(6, 8, 8, 1)}
  np.testing.assert_array_equal(batch['labels'], one.batch(0, seed=0)['labels'])
  # Test metrics must not depend on whether the devices divide the test set.
  whole = one.placement.whole(next(iter(one.task.inputs.test())))
  assert whole['inputs'].addressable_shards[0].data.shape[0] == 797


@pytest.mark.parametrize(
  ('text', 'batch_size', 'message'),
  [
    ('model=8', 48, "'model=8': 'model=8' must be data or fsdp=N"),
    ('data=4,', 48, "'' must be data or fsdp=N"),
    ('fsdp=0', 48, "'fsdp=0' must be data or fsdp=N"),
    ('data=4,data=2', 48, 'names data twice'),
    ('data=4', 48, '--mesh data=4 must use all devices: .* try data=8'),
    ('data=2,fsdp=2', 48, 'multiply to 4, and there are 8'),
    ('data=4,fsdp=2', 12, '--batch-size must be a multiple of 8, not 12'),
  ],
)
def test_an_invalid_mesh_is_reported_in_one_line(text, batch_size, message):
  with pytest.raises(ValueError, match=message):
    sharding.build(text, batch_size)


@pytest.mark.parametrize(
  ('shape', 'expected'),
  [
    ((64, 16), (32, 16)),
    ((3, 3, 8, 64), (3, 3, 8, 32)),
    ((32, 32), (16, 32)),
    ((3, 1025), (3, 1025)),  # odd
    ((2, 510), (2, 510)),  # small
    ((), ()),
  ],
)
def test_sharding_depends_only_on_the_shape(shape, expected):
  for mesh, held in (('data=4,fsdp=2', expected), ('data=8', shape)):
    abstract = jax.ShapeDtypeStruct(shape, 'float32')
    split = sharding.build(mesh, 48).shardings(abstract)
    assert split.shard_shape(shape) == held


def test_all_devices_are_used_if_they_divide_the_batch():
  assert sharding.build(None, 48).mesh.size == 8
  assert sharding.build(None, 50).mesh is None


@pytest.mark.slow
@pytest.mark.parametrize('name', ['k_sam', 'subset_sam', 'esam', 'm_sam'])
def test_selected_examples_are_split_over_the_devices(name):
  flops = {}
  for method in ('sgd', name):
    analysis = trainer(method, 'data=8').compile().cost_analysis()
    flops[method] = analysis['flops']
  # Replicated examples would cost eight times as much.
  assert flops[name] < 2.6 * flops['sgd']
