"""The program of fine-tuning, with tiny sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from benchmarks.fine_tuning import __main__ as program
from benchmarks.fine_tuning import runs, texts, training
from benchmarks.fine_tuning.methods import METHODS
from benchmarks.fine_tuning.model import Transformer

STRICT = False  # Flax promotes


def _new():
  codes = np.random.default_rng(0).integers(0, 128, 4000)
  return texts.Parts(codes, codes, codes)


def _tuned(name, radius, model):
  return training.fine_tune(
    model,
    METHODS[name],
    _new(),
    training.QUICK,
    0,
    learning_rate=0.01,
    radius=radius,
  )


def _model():
  sizes = training.QUICK
  return Transformer(
    length=sizes.length, width=sizes.width, blocks=1, rngs=nnx.Rngs(0)
  )


def test_parts_of_a_text_are_disjoint_and_whole():
  text = ''.join(chr(i % 128) for i in range(4000))
  found = texts.parts(text)
  assert [len(part) for part in found] == [3200, 400, 400]
  counts = sum(np.bincount(part, minlength=128) for part in found)
  np.testing.assert_array_equal(counts, np.bincount(np.arange(4000) % 128))
  assert len(texts.parts(text, 100).training) == 100


def test_texts_are_there():
  for text in (texts.python_sources(), texts.topics()):
    assert len(text) > 400_000


def test_a_missing_text_says_how_to_install_it(monkeypatch):
  monkeypatch.setattr(texts.shutil, 'which', lambda _: None)
  with pytest.raises(SystemExit, match='apt-get install bible-kjv'):
    texts.bible()


@pytest.mark.slow
def test_frozen_parameters_are_unchanged_and_methods_differ():
  model = _model()
  codes = jnp.ones((2, 16), jnp.int32)
  found = {}
  for name, radius in {
    'AdamW': 0.0,
    'SAM on adapters': 0.5,
    'SAM on frozen kernels': 0.5,
    'Functional-SAM': 0.5,
    'Flat-LoRA': 5.0,
    'Bi-LoRA': 0.5,
  }.items():
    tuned, cost = _tuned(name, radius, model)
    found[name] = tuned(codes)
    before, after = (
      {
        path: leaf
        for path, leaf in nnx.to_flat_state(nnx.state(m))
        if 'lora' not in path and 'second' not in path
      }
      for m in (model, tuned)
    )
    assert before.keys() == after.keys()
    for path, leaf in before.items():
      assert (leaf[...] == after[path][...]).all(), path
    adapters = optax.tree.size(nnx.state(tuned, nnx.LoRAParam))
    if name != 'Bi-LoRA':
      assert cost['state'] < 2 * adapters + 30, name  # two moments
  names = list(found)
  for i, name in enumerate(names):
    for other in names[:i]:
      assert not np.allclose(found[name], found[other], atol=1e-6), name


@pytest.mark.slow
def test_no_radius_is_the_base_optimizer():
  model, codes = _model(), jnp.ones((2, 16), jnp.int32)
  expected = _tuned('AdamW', 0.0, model)[0](codes)
  for name in ('SAM on frozen kernels', 'Functional-SAM', 'Flat-LoRA'):
    found = _tuned(name, 0.0, model)[0](codes)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_program_resumes_and_writes_its_table(tmp_path, capsys, monkeypatch):
  three = {name: METHODS[name] for name in ('AdamW', 'Flat-LoRA')}
  for module in (program, runs):
    monkeypatch.setattr(module, 'METHODS', three)
  arguments = ['--quick', '--seeds', '2', '--output', str(tmp_path)]
  arguments += ['--cache', str(tmp_path / 'cache')]
  program.main(arguments)
  table = (tmp_path / 'fine_tuning_quick_topics.md').read_text()
  lines = (tmp_path / 'fine_tuning_quick.csv').read_text().splitlines()
  assert len(lines) == 1 + (4 + 2) + (3 + 2)
  assert table.count('±') == 1 + 2 * 3
  (tmp_path / 'fine_tuning_quick.csv').write_text('\n'.join(lines[:-3]) + '\n')
  capsys.readouterr()
  program.main(arguments)
  assert 'pre-training' in capsys.readouterr().out
  again = (tmp_path / 'fine_tuning_quick.csv').read_text().splitlines()
  assert [line.split(',')[:9] for line in again] == [
    line.split(',')[:9] for line in lines
  ]
  assert (tmp_path / 'fine_tuning_quick_topics.md').read_text() == table
  program.main(arguments)
  assert 'pre-training' not in capsys.readouterr().out


def test_frozen_parameters_cost_no_weight_gradient():
  """Operations of a gradient of the adapters, and of all parameters."""
  model = _model()
  model.adapt(1, nnx.Rngs(1), has_second=False)
  codes = jnp.ones((64, 17), jnp.int32)

  def operations(kind):
    graphdef, params, rest = nnx.split(model, kind, ...)

    def loss(params):
      merged = nnx.merge(graphdef, params, rest)
      return training.losses(merged(codes[:, :-1]), codes[:, 1:])

    compiled = jax.jit(jax.grad(loss)).lower(params).compile()
    return compiled.cost_analysis()['flops']

  # A forward pass and a pass to the inputs, of three equal ones.
  assert operations(nnx.LoRAParam) < 0.8 * operations(nnx.Param)
