"""Each recipe trains small networks of its kind on generated images."""

import json
import pathlib

import numpy as np
import pytest

from optax_sam import sharpness
from tests.train.data.imagenet import pictures
from tests.train.runs import call

pytestmark = pytest.mark.slow

STRICT = False  # Flax and the schedules of Optax promote dtypes and ranks

RECIPES = sorted(pathlib.Path(__file__).parents[2].glob('recipes/*/*.json'))
NETWORKS = """
import jax.numpy as jnp
from optax_sam.train import models


def resnet50(classes):
  return models.ResNet(
    classes, (1, 1), bottleneck=True, width=8, dtype=jnp.bfloat16
  )


def vit_s16(classes):
  return models.ViT(
    classes, width=16, depth=1, heads=2, hidden=32, dtype=jnp.bfloat16
  )
"""
SMALL = {
  'steps': 20,
  'batch-size': 12,
  'image-size': 32,
  'evaluations': 2,
  'checkpoint-every': 10,
  'log-every': 5,
  'sharpness-examples': 6,
  'input-threads': 1,
  'prefetch': 1,
}


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
  found = tmp_path_factory.mktemp('recipes')
  pictures.make_folder(found / 'images')
  (found / 'networks.py').write_text(NETWORKS)
  return found


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
def test_a_recipe_trains_for_20_steps(path, directory, monkeypatch):
  # Compiling it takes longer than the run.
  monkeypatch.setattr(sharpness, 'top_eigenvalue', lambda *_, **__: 7.0)
  recipe = json.loads(path.read_text())
  output = directory / path.stem
  flags = SMALL | {
    'config': path,
    'model': f'{directory}/networks.py:{recipe["model"]}',
    'data-dir': directory / 'images',
    'output': output,
  }
  assert (
    call('train', *(f'--{key}={value}' for key, value in flags.items())) == 0
  )
  lines = (output / 'metrics.jsonl').read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  losses = {row['step']: row['loss'] for row in rows if row['kind'] == 'log'}
  assert list(losses) == [5, 10, 15, 20]
  assert np.isfinite(list(losses.values())).all()
  tested = {row['step'] for row in rows if 'test_accuracy' in row}
  assert tested == {10, 20}
  assert (output / 'checkpoints' / '20').is_dir()
