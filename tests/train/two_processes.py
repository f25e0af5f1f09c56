"""One process of two that run these tests in step, on two devices each."""

import contextlib
import dataclasses
import functools
import io
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils
from rich.console import Console

from optax_sam.train import cli
from optax_sam.train.commands import train
from optax_sam.train.config import checks, configs, output_dir
from optax_sam.train.data import datasets, imagenet, imagenet_inputs
from optax_sam.train.distributed import processes, sharding
from optax_sam.train.loop import checkpoints, evaluation
from optax_sam.train.loop.trainer import Progress, Trainer
from optax_sam.train.optimizers import build
from tests.imagenet import pictures
from tests.train import problems

STRICT = False  # Flax promotes ranks

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
  with processes.joined(given):
    assert jax.device_count() == 2 * jax.local_device_count() == 4
    yield


@pytest.fixture
def shared(request):
  """A directory that both processes see."""
  path = pathlib.Path(os.environ['SHARED']) / request.node.name
  path.mkdir(exist_ok=True)
  return path


@functools.cache
def task(alone):
  """Returns one task for all trainers: evaluation is compiled once."""
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
  """Returns all elements, of arrays that are split over processes too."""

  def fetch(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    if leaf.is_fully_addressable:
      return np.asarray(leaf)
    return multihost_utils.process_allgather(leaf, tiled=True)

  return jax.tree.map(fetch, tree)


def taken(one, steps=STEPS):
  state, metrics = one.start(seed=0).state, {}
  for number in range(steps):
    state, metrics = one.step(state, one.batch(number, seed=0))
  return state, metrics


def assert_close(found, expected):
  jax.tree.map(
    lambda one, other: np.testing.assert_allclose(
      one, other, rtol=1e-4, atol=1e-5
    ),
    found,
    expected,
  )


@pytest.mark.parametrize(
  ('name', 'mesh', 'execution'),
  [
    ('sgd', 'data=4', 'jit'),
    ('sam', 'data=4', 'jit'),
    ('sam', 'fsdp=4', 'jit'),
    ('ae_sam', 'data=4', 'jit'),
    ('ae_sam', 'data=2,fsdp=2', 'host'),
    ('k_sam', 'data=2,fsdp=2', 'jit'),
    ('swad', 'data=2,fsdp=2', 'jit'),
  ],
)
def test_two_processes_train_as_one_does(name, mesh, execution):
  one = trainer(name, mesh, execution=execution, ema_decay=0.5)
  assert_close(ending(one), reference(name))


@functools.cache
def reference(name):
  return ending(trainer(name, None, ema_decay=0.5))


def ending(one):
  """Returns all that a run leaves behind."""
  state, metrics = taken(one)
  progress = Progress(state, STEPS)
  return (
    whole((state.params, state.opt_state, state.average)),
    one._log_row(progress, metrics),
    one._evaluation_row(progress) if one.name == 'sam' else {},
  )


def test_validations_are_those_of_one_process():
  ends = []
  for mesh in (None, 'data=2,fsdp=2'):
    one = trainer('swad', mesh, steps=2 * 18, evaluations=1)  # two epochs
    progress = one.start(seed=0)
    one.run(progress, seed=0)
    solution = whole(one.solution(progress.state)[0])
    ends.append((progress.validations, progress.evaluations, solution))
  assert len(ends[0][0]) == 2
  assert_close(*ends)


def test_the_batch_of_a_step_is_the_same_with_any_number_of_processes():
  one = trainer('sgd', 'data=4')
  for number in (0, 3, 25):
    batch = one.placement.batch(one.batch(number, seed=7))
    assert batch['inputs'].addressable_shards[0].data.shape[0] == BATCH // 4
    expected = datasets.batch_at(
      one.task.inputs.dataset.train, number, BATCH, 7
    )
    jax.tree.map(np.testing.assert_array_equal, whole(batch), expected)


def test_parameters_and_what_has_their_shape_are_split_over_fsdp():
  one = trainer('sam', 'data=2,fsdp=2', ema_decay=0.5)
  state, _ = taken(one, steps=1)
  kernels = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (64, 16)]
  assert len(kernels) == 3  # the kernel, its momentum, its average
  for leaf in jax.tree.leaves(state):
    held = {shard.data.shape for shard in leaf.addressable_shards}
    assert held == {(32, 16) if leaf.shape == (64, 16) else leaf.shape}


def test_sharpness_is_that_of_one_process():
  state, _ = taken(trainer('sgd', None))
  found = {}
  for mesh in (None, 'data=2,fsdp=2'):
    one = trainer('sgd', mesh)
    params = one.placement.state(jax.device_get(state.params))
    found[mesh] = one.measure_sharpness(state._replace(params=params))
  assert found[mesh] == pytest.approx(found[None], rel=1e-4)


def test_images_come_in_the_same_rows_as_to_one_process(shared):
  if processes.is_first():
    pictures.make_folder(shared / 'images')
  multihost_utils.sync_global_devices('images')
  where = sharding.build('data=4', 12)

  def made(**process):
    options = imagenet.InputOptions(
      batch_size=12, size=8, threads=2, prefetch=2, **process
    )
    return imagenet_inputs.ImageInputs(
      shared / 'images', options, dtype=jnp.float32, say=pytest.fail
    )

  both = made()
  alone = made(process_index=0, process_count=1)
  with contextlib.closing(both), contextlib.closing(alone):
    pairs = [(both.batch(3, seed=1), alone.batch(3, seed=1))]
    pairs += list(zip(both.test(), alone.test(), strict=True))
    for mine, expected in pairs:
      assert len(mine['labels']) == 6
      found = whole(where.batch(mine))
      jax.tree.map(np.testing.assert_array_equal, found, expected)
    fixed = where.whole(both.fixed(20))
    jax.tree.map(np.testing.assert_array_equal, whole(fixed), alone.fixed(20))


@pytest.mark.usefixtures('unmeasured')
def test_a_run_on_images(shared):
  if processes.is_first():
    folder = pictures.make_folder(shared / 'images')
    pictures.truncate(folder / 'train' / 'n02' / 'n02_04.JPEG')
  multihost_utils.sync_global_devices('folder')
  given = problems.train_config(
    dataset='imagenet',
    data_dir=shared / 'images',
    model='cnn',
    image_size=8,
    input_threads=2,
    prefetch=2,
    batch_size=12,
    steps=9,
    sharpness_examples=12,
    evaluations=1,
    output=shared / 'run',
  )  # one epoch
  finished, text = run(given)
  assert finished
  if processes.is_first():
    assert 'Images skipped as corrupt: 1.' in text


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
  found = evaluation.evaluate(
    one.task, one.placement.state(params), statistics, batches, one.placement
  )
  expected = evaluation.evaluate(
    alone.task, params, statistics, [test], alone.placement
  )
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
  jax.tree.map(
    np.testing.assert_array_equal, whole(found.state), whole(progress.state)
  )
  for leaf, other in zip(
    jax.tree.leaves(found.state), jax.tree.leaves(like), strict=True
  ):
    assert leaf.sharding == other.sharding


def test_what_one_process_cannot_read_none_takes(saved, monkeypatch):
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


@pytest.fixture
def unmeasured(monkeypatch):
  """Leaves out what takes the longest of a short run."""
  row = {'sam_sharpness': 0.5, 'top_eigenvalue': 1.5}
  monkeypatch.setattr(Trainer, 'measure_sharpness', lambda *_: row)


def run(given):
  text = io.StringIO()
  finished = train.run(given, Console(file=text, width=200))
  assert bool(text.getvalue()) == processes.is_first()
  return finished, text.getvalue()


@pytest.mark.usefixtures('unmeasured')
def test_a_run_goes_on_before_a_damaged_checkpoint(shared):
  given = problems.train_config(
    method='ss_sam',
    batch_size=BATCH,
    mesh='data=2,fsdp=2',
    output=shared / 'run',
  )
  assert run(given)[0]
  before = (given.output / 'metrics.jsonl').read_bytes()
  multihost_utils.sync_global_devices('before')
  if processes.is_first():
    (given.output / 'metrics.jsonl').unlink()
    files = (given.output / 'checkpoints' / '12').rglob('*')
    largest = max(files, key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
  multihost_utils.sync_global_devices('damaged')
  finished, text = run(dataclasses.replace(given, resume=True))
  assert finished
  if processes.is_first():
    assert 'The checkpoint of step 12 is damaged' in text
    assert 'Resuming from the checkpoint of step 9' in text
  multihost_utils.sync_global_devices('after')
  assert (given.output / 'metrics.jsonl').read_bytes() == before
  changed = dataclasses.replace(given, resume=True, rho=0.2)
  with pytest.raises(processes.RefusedError, match=r'rho was None and is now'):
    run(changed)


@pytest.mark.parametrize(
  ('arguments', 'named'),
  [
    (['--mesh', 'data=3'], '--mesh data=3 must be of all devices'),
    (['--mesh', 'fsdp=4', '--batch-size', '50'], '--batch-size must be a mult'),
    (['--batch-size', '50'], '--batch-size must be a multiple of 4, not 50'),
    (['--output', '.'], '--output . exists'),
    (['--resume', '--output', 'missing'], 'there is no such run'),
  ],
)
def test_what_is_refused_is_refused_by_both(
  arguments, named, capsys, shared, monkeypatch
):
  monkeypatch.chdir(shared)
  with pytest.raises(SystemExit) as stop:
    cli.main(['train', *arguments])
  assert stop.value.code == 2
  captured = capsys.readouterr()
  assert captured.err.count('\n') == 1
  assert named in captured.err
  assert captured.out == ''
  assert problems.names(shared) == set()


def test_what_only_one_refuses_the_other_refuses_too(capsys):
  def check():
    if not processes.is_first():
      raise OSError(28, 'No space left', '/there')

  with pytest.raises(processes.RefusedError) as refused:
    processes.together(check)
  here = 'cannot write the output: /there: No space left'
  expected = f'process 1: {here}' if processes.is_first() else here
  assert str(refused.value) == expected
  assert capsys.readouterr().err == ''


def test_different_flags_are_refused_by_both():
  given = problems.train_config(
    batch_size=BATCH, rho=0.1 * (1 + jax.process_index())
  )
  with pytest.raises(
    processes.RefusedError, match=r'rho is 0\.1 in process 0, 0\.2 in'
  ):
    train.run(given, Console(quiet=True))


def test_a_directory_that_only_one_sees_is_refused(shared, monkeypatch):
  target = shared / 'run'
  if not processes.is_first():
    monkeypatch.setattr(output_dir, 'read_config', lambda _: None)
  given = problems.train_config(batch_size=BATCH, output=target)
  with pytest.raises(processes.RefusedError, match='all processes share'):
    train.run(given, Console(quiet=True))
