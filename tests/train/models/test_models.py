import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam.train import models
from optax_sam.train.models import networks, vit
from tests.train.problems import slow_but

BIG = {
  'resnet18': (32, 32, 3),
  'resnet50': (64, 64, 3),
  'wideresnet28x10': (32, 32, 3),
  'vit_s16': (32, 32, 3),
}
TINY = {
  'basic': models.ResNet(10, (1, 1), width=8, small_images=True),
  'bottleneck': models.ResNet(10, (1,), bottleneck=True, width=4),
  'wide': models.WideResNet(10, depth=10, widening=1, dropout=0.1),
  'vit': models.ViT(10, width=16, depth=1, heads=2, hidden=32, patch=4),
}


def abstract_images(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def abstract_variables(model, *shape):
  init = functools.partial(model.init, train=False)
  return jax.eval_shape(init, jax.random.key(0), abstract_images(1, *shape))


@functools.cache
def tiny_variables(name):
  init = functools.partial(TINY[name].init, train=False)
  # Threefry is slow to compile.
  key = jax.random.key(1, impl='rbg')
  return jax.jit(init)(key, jnp.zeros((1, 8, 8, 3)))


def labeled_images(count):
  """Noise around a color for each of ten labels."""
  random = np.random.default_rng(0)
  labels = np.arange(count) % 10
  colors = random.normal(size=(10, 1, 1, 3))[labels]
  noise = random.normal(size=(count, 8, 8, 3))
  return jnp.asarray(colors + 0.3 * noise, jnp.float32), labels


def training_pass(model, variables, images):
  return model.apply(
    variables,
    images,
    train=True,
    rngs={'dropout': jax.random.key(2, impl='rbg')},
    mutable=['batch_stats'],
  )


def abstract_results(model, shape, *, train):
  """Returns logits, statistics and the outputs of all modules by name."""

  def apply(variables, images):
    return model.apply(
      variables,
      images,
      train=train,
      rngs={'dropout': jax.random.key(2)},
      mutable=['batch_stats', 'intermediates'],
      capture_intermediates=True,
    )

  operands = abstract_variables(model, *shape), abstract_images(2, *shape)
  logits, changed = jax.eval_shape(apply, *operands)
  results = named_leaves(changed.pop('intermediates'))
  return logits, changed, results


def named_leaves(tree):
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


@pytest.mark.parametrize(
  ('name', 'classes', 'shape', 'count'),
  [
    ('mlp', 10, (8, 8, 1), 64 * 128 + 128 * 128 + 128 * 10 + 2 * 128 + 10),
    ('resnet18', 10, (63, 63, 3), 11_173_962),
    ('resnet18', 1000, (64, 64, 3), 11_689_512),
    ('resnet50', 1000, (224, 224, 3), 25_557_032),
    ('wideresnet28x10', 10, (32, 32, 3), 36_479_194),
    # Without the class token and learned positions of the papers
    ('vit_s16', 1000, (224, 224, 3), 22_050_664 - 198 * 384),
  ],
)
def test_the_number_of_parameters_equals_that_of_other_code(
  name, classes, shape, count
):
  model = models.build(name, classes, shape)
  params = abstract_variables(model, *shape)['params']
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


def dtypes(tree):
  return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}


@pytest.mark.parametrize(
  'name', slow_but(('mlp', 'cnn', 'vit_s16'), models.NAMES)
)
def test_only_parameters_statistics_and_logits_are_float32(name):
  shape = BIG.get(name, (8, 8, 1))
  model = models.build(name, 7, shape, dtype=jnp.bfloat16)
  variables = abstract_variables(model, *shape)
  assert dtypes(variables) == {'float32'}
  assert set(variables) <= {'params', 'batch_stats'}
  assert ('batch_stats' in variables) == (name not in ('mlp', 'vit_s16'))
  logits, changed, results = abstract_results(model, shape, train=True)
  assert logits.shape == (2, 7)
  in_float32 = [k for k, leaf in results.items() if leaf.dtype == jnp.float32]
  assert logits.dtype == jnp.float32
  assert dtypes(changed) <= {'float32'}
  assert len(in_float32) == 2  # the head and the whole model
  assert dtypes(results) == {'float32', 'bfloat16'}


@pytest.mark.parametrize('bottleneck', [False, True])
def test_a_block_starts_as_the_identity(bottleneck):
  layers = networks._layers(models.ResNet(10), True)
  images = jax.random.uniform(jax.random.key(0), (2, 4, 4, 8))
  block = networks.Block(2 if bottleneck else 8, 1, layers, bottleneck)
  start = jax.jit(block.init_with_output)
  result, _ = start(jax.random.key(1, impl='rbg'), images)
  np.testing.assert_array_equal(result, images)


def test_the_stride_of_a_bottleneck_is_in_the_3x3_convolution():
  model = TINY['bottleneck'].clone(blocks=(1, 1))
  _, _, results = abstract_results(model, (64, 64, 3), train=False)
  shapes = {name: leaf.shape for name, leaf in results.items()}
  assert shapes["['stem']['__call__'][0]"] == (2, 32, 32, 4)
  block = "['stage2_block1']['Conv_{}']['__call__'][0]"
  assert [shapes[block.format(i)][1] for i in range(3)] == [16, 8, 8]


@pytest.mark.parametrize('name', slow_but('basic', TINY))
def test_sam_trains_the_model_in_a_jitted_step(name):
  model, variables = TINY[name], tiny_variables(name)
  images, labels = labeled_images(20)
  params, statistics = variables['params'], variables.get('batch_stats', {})
  tx = optax.chain(optax_sam.sam(rho=0.05), optax.sgd(0.05, momentum=0.9))

  @jax.jit
  def step(params, statistics, state):
    def loss(params):
      variables = {'params': params, 'batch_stats': statistics}
      logits, changed = training_pass(model, variables, images)
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      return jnp.mean(losses), changed.get('batch_stats', {})

    (value, statistics), grads = jax.value_and_grad(loss, has_aux=True)(params)
    updates, state = tx.update(
      grads, state, params, value_fn=lambda params: loss(params)[0]
    )
    return optax.apply_updates(params, updates), statistics, state, value

  state, losses = tx.init(params), []
  for _ in range(10):
    params, statistics, state, value = step(params, statistics, state)
    losses.append(float(value))
  assert losses[-1] < 0.8 * losses[0]
  assert int(optax_sam.metrics(state)['second_gradients']) == 10


def test_positions_distinguish_rows_from_columns():
  waves = vit._positions(14, 13, 384)
  in_a_row, in_a_column = waves[:, 0], waves[0]
  np.testing.assert_array_equal(waves[..., :192] - in_a_column[:, :192], 0)
  np.testing.assert_array_equal(waves[..., 192:] - in_a_row[:, None, 192:], 0)
  np.testing.assert_allclose(
    waves[3, 5, [0, 95, 96, 191, 192]],
    [np.sin(5), np.sin(5e-4), np.cos(5), np.cos(5e-4), np.sin(3)],
    rtol=1e-6,
  )


@pytest.mark.parametrize('name', sorted({*models.NAMES} - {'mlp'}))
def test_all_convolutions_use_the_field_convolve(name):
  called = []

  def convolve(*args, **settings):
    called.append(args[1].shape)
    return jax.lax.conv_general_dilated(*args, **settings)

  shape = BIG.get(name, (8, 8, 1))
  model = models.build(name, 10, shape).clone(convolve=convolve)
  variables = abstract_variables(model, *shape)
  kernels = [x.shape for x in jax.tree.leaves(variables) if x.ndim == 4]
  assert sorted(called) == sorted(kernels)


def test_unknown_names_and_signals_raise():
  with pytest.raises(ValueError, match="'lenet' is unknown; choose"):
    models.build('lenet', 10, (8, 8, 1))
  for name in BIG:
    with pytest.raises(ValueError, match=r'not examples of shape \(40, 1\)'):
      models.build(name, 10, (40, 1))


@pytest.mark.parametrize(
  ('model', 'shape', 'message'),
  [
    (models.ViT(10), (8, 16, 1), r'divide .* \(8, 16\), not 16'),
    (models.ViT(10, width=30), (16, 16, 1), r'4 and of heads=6, not 30'),
    (models.WideResNet(10, depth=27), (8, 8, 1), r'multiple of 6, not 27'),
  ],
)
def test_invalid_sizes_raise(model, shape, message):
  with pytest.raises(ValueError, match=message):
    abstract_variables(model, *shape)
