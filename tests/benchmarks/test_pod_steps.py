import functools

import jax
import pytest

from benchmarks.pod import programs, steps
from optax_sam.train.config import configs
from optax_sam.train.loop import task

pytestmark = pytest.mark.slow

STRICT = False  # Flax and the schedules of Optax promote dtypes and ranks


@functools.cache
def report(name, devices):
  """Compiles a step of the trainer with the same examples on each device."""
  row = steps.Row.parse(name)
  config = configs.TrainConfig(
    model='mlp', method=row.method, batch_size=32 * devices
  )
  problem = task.build(config)
  lowered = steps.lower(problem, config, row, jax.devices()[:devices])
  return programs.report(lowered)


@pytest.mark.parametrize('name', ['sam', 'shard_map/sam, local ascent'])
def test_work_and_collectives_of_a_device_do_not_grow_with_devices(name):
  few, many = report(name, 2), report(name, 4)
  assert few.structure == many.structure
  assert few.flops == many.flops > 0
  assert many.structure.total.bytes > 0


def test_only_a_synced_ascent_step_communicates():
  count = {
    name: report(f'shard_map/{name}', 4).structure.total.count
    for name in ('sgd', 'sam', 'sam, local ascent')
  }
  assert count['sam, local ascent'] == count['sgd']
  assert count['sam'] == count['sgd'] + 1


def test_a_donated_state_saves_memory():
  donated, kept = report('sam', 2), report('sam, not donated', 2)
  assert donated.structure == kept.structure
  assert donated.peak_bytes < kept.peak_bytes


@pytest.mark.parametrize(
  ('model', 'method', 'expected'),
  [
    ('resnet50', 'sam', 'sam'),
    ('vit_s16', 'sgd', 'adamw'),
    ('vit_s16', 'asam', 'asam'),
  ],
)
def test_rows_have_the_flags_of_recipes(model, method, expected):
  config = programs.recipe(model, method)
  assert (config.model, config.method) == (model, expected)
  assert config.batch_size == 4096
