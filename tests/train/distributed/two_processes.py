"""Tests that run in two processes together, with two devices each."""

import contextlib
import functools
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils

from optax_sam.train.config import checks, configs, output_dir
from optax_sam.train.data import imagenet
from optax_sam.train.distributed import processes, sharding
from optax_sam.train.loop import checkpoints
from optax_sam.train.loop.trainer import Progress, Trainer
from optax_sam.train.optimizers import build
from tests.train import problems
from tests.train.data.imagenet import pictures
from tests.train.problems import assert_close, assert_equal
from tests.train.runs import refused, run

STEPS = 4
BATCH = 48
MESHES = ('data=4', 'fsdp=4', 'data=2,fsdp=2')


@pytest.fixture(scope='session', autouse=True)
def joined():
  given = configs.TrainConfig(
    coordinator=os.environ['COORDINATOR'],
    num_processes=2,
    process_id=int(os.environ['PROCESS']),
  )
  checks.validate(given)
  jax.config.update('jax_num_cpu_devices', 2)  # instead of eight
  with processes.joined(given):
    assert jax.device_count() == 2 * jax.local_device_count() == 4
    yield


@pytest.fixture
def shared(request):
  """A directory that is visible to both processes."""
  path = pathlib.Path(os.environ['SHARED']) / request.node.name
  path.mkdir(exist_ok=True)
  return path


@functools.cache
def task(alone):
  """Returns one task for all trainers, so evaluation is compiled once."""
  return problems.small_task('mlp', BATCH, (0, 1) if alone else None)


def trainer(name, mesh, **changes):
  """Returns a trainer on all devices, or without a mesh on one of each."""
  given = problems.train_config(batch_size=BATCH, method=name, **changes)
  set_to = {'lambda_1': 1, 'lambda_2': 2.5} if name == 'ae_sam' else {}
  return Trainer(
    given,
    task(alone=mesh is None),
    name,
    build.complete_settings(name, set_to, 0.05),
    sharding.build(mesh, BATCH) if mesh else sharding.Placement(),
  )


def whole(tree):
  """Returns full arrays, also of arrays that are split over processes."""

  def fetch(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    if leaf.is_fully_addressable:
      return np.asarray(leaf)
    return multihost_utils.process_allgather(leaf, tiled=True)

  return jax.tree.map(fetch, tree)


def ending(one):
  """Returns state, metrics and sharpness at the end of a run."""
  state, metrics = one.start(seed=0).state, {}
  for number in range(STEPS):
    state, metrics = one.step(state, one.batch(number, seed=0))
  progress = Progress(state, STEPS)
  return (
    whole((state.params, state.opt_state)),
    one._log_row(progress, metrics),
    one._evaluation_row(progress) if one.name == 'sam' else {},
  )


@functools.cache
def reference(name):
  return ending(trainer(name, None))


@pytest.mark.parametrize(
  ('name', 'mesh', 'execution'),
  [
    ('sam', 'fsdp=4', 'jit'),
    ('ae_sam', 'data=4', 'jit'),
    ('ae_sam', 'data=2,fsdp=2', 'host'),
    ('k_sam', 'data=2,fsdp=2', 'jit'),
    ('swad', 'data=2,fsdp=2', 'jit'),
  ],
)
def test_two_processes_train_as_one_does(name, mesh, execution):
  one = trainer(name, mesh, execution=execution)
  assert_close(ending(one), reference(name), atol=1e-5)


def test_rows_of_images_equal_those_of_one_process(shared):
  if processes.is_first():
    pictures.make_folder(shared / 'images')
  multihost_utils.sync_global_devices('images')
  where = sharding.build('data=4', 12)

  def made(**process):
    options = {'batch_size': 12, 'size': 8, 'threads': 2, 'prefetch': 2}
    return contextlib.closing(
      imagenet.ImageInputs(
        shared / 'images', **options, **process, say=pytest.fail
      )
    )

  with made() as both, made(process=(0, 1)) as alone:
    pairs = [(both.batch(3, seed=1), alone.batch(3, seed=1))]
    pairs += list(zip(both.test(), alone.test(), strict=True))
    for mine, expected in pairs:
      assert len(mine['labels']) == 6
      assert_equal(whole(where.batch(mine)), expected)
    fixed = where.whole(both.fixed(20))
    assert_equal(whole(fixed), alone.fixed(20))


def test_every_test_example_counts_once():
  one, alone = trainer('sgd', 'data=4'), trainer('sgd', None)
  params, statistics = one.task.init(jax.random.key(0))
  test = one.task.inputs.dataset.test
  batches = []
  for start in range(0, 797, BATCH):
    rows = np.arange(start, start + BATCH)
    mine = np.array_split(rows, 2)[jax.process_index()]
    batch = {name: values[mine % 797] for name, values in test.items()}
    batches.append({**batch, 'is_example': mine < 797})
  found = one.evaluate(one.placement.state(params), statistics, batches)
  expected = alone.evaluate(params, statistics, [test])
  assert found == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope='session')
def saved(tmp_path_factory):
  del tmp_path_factory
  path = pathlib.Path(os.environ['SHARED']) / 'saved'
  one = trainer('sam', 'data=4')
  progress = one.start(seed=0)
  with checkpoints.Checkpoints(path, {}) as store:
    for step in (1, 2):
      progress.state, _ = one.step(progress.state, one.batch(step, seed=0))
      progress.step = step
      store.save(progress)
  return path, progress


@pytest.mark.parametrize('mesh', MESHES)
def test_a_checkpoint_is_read_on_any_mesh(mesh, saved):
  path, progress = saved
  like = trainer('sam', mesh).start(seed=1).state
  with checkpoints.Checkpoints(path, {}) as store:
    found = store.restore(like, pytest.fail)
  assert found.step == 2
  assert_equal(whole(found.state), whole(progress.state))
  leaves = map(jax.tree.leaves, (found.state, like))
  assert all(x.sharding == y.sharding for x, y in zip(*leaves, strict=True))


def test_a_checkpoint_that_one_process_cannot_read_is_skipped_by_both(
  saved, monkeypatch
):
  path, _ = saved
  original = checkpoints._alone
  reads = []

  def alone():
    reads.append(0)
    if processes.is_first() or len(reads) > 1:
      return original()
    msg = 'a bad disk'
    raise ValueError(msg)

  said = []
  monkeypatch.setattr(checkpoints, '_alone', alone)
  with checkpoints.Checkpoints(path, {}) as store:
    like = trainer('sam', 'data=4').start(seed=1).state
    assert store.restore(like, said.append).step == 1
  (line,) = said
  assert 'The checkpoint of step 2 is damaged: ' in line
  assert 'a bad disk' in line
  multihost_utils.sync_global_devices('read')
  assert sorted(problems.names(path)) == ['1']


@pytest.mark.parametrize(
  ('arguments', 'named'),
  [
    (['--mesh', 'data=3'], '--mesh data=3 must use all devices'),
    (['--resume', '--output', 'missing'], 'there is no run'),
  ],
)
def test_an_error_on_one_process_is_raised_by_both(
  arguments, named, capsys, shared, monkeypatch
):
  monkeypatch.chdir(shared)
  assert named in refused(capsys, 'train', *arguments)
  assert problems.names(shared) == set()


def test_different_flags_raise_on_both():
  rho = 0.1 * (1 + jax.process_index())
  given = problems.train_config(batch_size=BATCH, rho=rho)
  with pytest.raises(
    processes.RefusedError, match=r'rho is 0\.1 in process 0, 0\.2 in'
  ):
    run(given)


def test_a_directory_that_one_process_cannot_read_raises(shared, monkeypatch):
  target = shared / 'run'
  if not processes.is_first():
    monkeypatch.setattr(output_dir, 'read_config', lambda _: None)
  given = problems.train_config(batch_size=BATCH, output=target)
  message = 'all processes share'
  if processes.is_first():
    message = f'process 1: .* {message}'
  with pytest.raises(processes.RefusedError, match=message):
    run(given)
