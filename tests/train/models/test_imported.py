import flax.linen as nn
import pytest
from flax import nnx

from optax_sam.train.models import imported

SOURCE = """
import flax.linen as nn
from flax import nnx

class Net(nn.Module):
  features: int
  width: int = 8

class Fixed(nn.Module):
  pass

class Wide(nn.Module):
  width: int
  depth: int

class Own(nn.Module):
  width: int = 3
  num_classes: int = 10

class Module(nnx.Module):
  def __init__(self, classes, *, rngs):
    self.head = nnx.Linear(4, classes, rngs=rngs)

class Small(nnx.Module):
  def __init__(self, rngs):
    self.head = nnx.Linear(4, 2, rngs=rngs)

instance = Net(2)
pair = (lambda key, x: 0, lambda params, x: x)

def factory(num_classes, width=5):
  return Net(num_classes, width)

def fixed():
  return Net(2)

def broken(classes):
  raise KeyError('why')

def build_equinox(key):
  return key
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  (tmp_path / 'own_nets.py').write_text(SOURCE)
  (tmp_path / 'random.py').write_text(SOURCE)
  for name, text in (
    ('raises', '\n1 / 0'),
    ('syntax', 'def f(:'),
    ('imports', 'import not_there'),
    ('leaves', 'import sys; sys.exit(0)'),
  ):
    (tmp_path / f'own_{name}.py').write_text(text)


@pytest.mark.usefixtures('here')
@pytest.mark.parametrize('module', ['own_nets', 'own_nets.py', 'random.py'])
def test_models_get_the_number_of_outputs(module):
  def build(name):
    return imported.build(f'{module}:{name}', 7)

  assert build('Net').features == 7
  assert (build('Own').num_classes, build('Own').width) == (7, 3)
  assert isinstance(build('Fixed'), nn.Module)
  assert build('instance').features == 2
  assert (build('factory').features, build('factory').width) == (7, 5)
  assert build('fixed').features == 2
  assert len(build('pair')) == 2
  for name, outputs in (('Module', 7), ('Small', 2)):
    made = build(name)(rngs=nnx.Rngs(0))
    assert made.head.out_features == outputs
  assert build('build_equinox')(key=3) == 3


@pytest.mark.usefixtures('here')
@pytest.mark.parametrize(
  ('reference', 'message'),
  [
    ('own_nets:', 'must read package.module:Name'),
    (':Net', 'must read package.module:Name'),
    ('own_net:Net', 'there is no module own_net in /'),
    ('own_nets.deep:Net', 'own_nets.deep'),
    ('not_there/own.py:Net', 'there is no file not_there/own.py'),
    ('own_nets:Nett', 'own_nets has no Nett; did you mean Net'),
    ('own_nets:Wide', "needs the argument 'width'"),
    ('own_nets:broken', "raises KeyError in line .* of own_nets.py: 'why'"),
    ('own_raises.py:f', 'ZeroDivisionError in line 2 of own_raises.py'),
    ('own_syntax:f', 'raises SyntaxError in line 1: invalid syntax'),
    ('own_imports:f', 'imports not_there, which is not installed'),
    ('own_leaves:f', 'raises SystemExit'),
  ],
)
def test_what_cannot_be_imported_is_refused(reference, message):
  with pytest.raises(ValueError, match=message) as error:
    imported.build(reference, 7)
  assert '\n' not in str(error.value)
  assert str(error.value).startswith(f'--model {reference}')
