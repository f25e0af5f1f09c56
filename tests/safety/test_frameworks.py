"""Common usage of Flax, Equinox and others: equal passes, or an error."""

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from flax.linen import fp8_ops
from flax.training import train_state

import optax_sam
from optax_sam.flax import TrainState, nnx_per_example_value_fn, nnx_value_fn
from tests.frameworks import by_hand

STRICT = False  # 8-bit floats of Flax need promotion
RHO, RATE = 0.5, 0.1
X = jax.random.normal(jax.random.key(3), (4, 8))


class Network(nnx.Module):
  """Dropout with a random stream as argument, or with an internal one."""

  def __init__(self, own=None):
    self.out = nnx.Linear(8, 1, rngs=nnx.Rngs(0))
    self.dropout = nnx.Dropout(0.5, rngs=own)

  def __call__(self, x, rngs=None):
    return self.out(self.dropout(x, rngs=rngs))[:, 0]


def loss_fn(model, x, rngs=None, metric=None):
  losses = (model(x, rngs) - 1) ** 2
  if metric is not None:
    metric.update(values=losses)
  return jnp.mean(losses)


def make(method=None):
  model = Network()
  tx = optax.chain(method or optax_sam.sam(RHO), optax.sgd(RATE))
  return model, nnx.Optimizer(model, tx, wrt=nnx.Param)


def step_by_hand(model, rngs):
  """SAM on copies of the model, with equal RNG counters in both passes."""
  second, same = nnx.clone((model, rngs))
  grads = nnx.as_pure(nnx.grad(loss_fn)(nnx.clone(model), X, nnx.clone(rngs)))
  params = nnx.as_pure(nnx.state(second, nnx.Param))
  nnx.update(second, by_hand.ascend(params, grads, RHO))
  grads = nnx.as_pure(nnx.grad(loss_fn)(second, X, same))
  return jax.tree.map(lambda w, g: w - RATE * g, params, grads)


def params_of(model):
  return nnx.as_pure(nnx.state(model, nnx.Param))


WAYS = {
  'positional': lambda m, r, s: nnx_value_fn(m, loss_fn, X, r, s),
  'keyword': lambda m, r, s: nnx_value_fn(m, loss_fn, X, rngs=r, metric=s),
  'nested': lambda m, r, s: nnx_value_fn(
    m,
    lambda m, tree, **k: loss_fn(m, X, tree['rngs'][1], k['rest'][0]),
    {'rngs': ('text', r, None, jnp.sin)},
    rest=[s],
  ),
}


@pytest.mark.parametrize('jit', [lambda f: f, nnx.jit])
@pytest.mark.parametrize('way', WAYS)
def test_all_nnx_objects_are_restored_before_the_perturbed_pass(way, jit):
  model, optimizer = make()
  rngs, metric = nnx.Rngs(1), nnx.metrics.Average()

  def step(model, optimizer, rngs, metric):
    value_fn = WAYS[way](model, rngs, metric)
    grads = nnx.grad(loss_fn)(model, X, rngs, metric)
    optimizer.update(model, grads, value_fn=value_fn)

  for number in range(2):
    expected = step_by_hand(model, rngs)
    jit(step)(model, optimizer, rngs, metric)
    assert by_hand.distance(params_of(model), expected) < 1e-6
    assert int(rngs.default.count[...]) == number + 1
    assert int(metric.count[...]) == 4 * (number + 1)


def test_parameters_shared_with_an_argument_are_perturbed():
  model = Network()
  loss = lambda model, layer: jnp.sum(model.out.bias[...] * layer.bias[...])
  value_fn = nnx_value_fn(model, loss, model.out)
  params = params_of(model)
  params['out']['bias'] = jnp.array([3.0])
  assert jax.grad(value_fn)(params)['out']['bias'] == 6.0


@pytest.mark.parametrize('jit', [lambda f: f, nnx.jit])
@pytest.mark.parametrize('own', [False, True])
@pytest.mark.parametrize('per_example', [False, True])
def test_an_adapter_after_the_first_pass_raises(jit, own, per_example):
  model = Network(nnx.Rngs(2) if own else None)
  losses_fn = lambda model, x, rngs: (model(x, rngs) - 1) ** 2

  def step(model, rngs):
    grads = nnx.as_pure(nnx.grad(loss_fn)(model, X, rngs))
    if per_example:
      losses = nnx_per_example_value_fn(model, losses_fn, rngs)
      given = {'per_example_value_fn': losses, 'batch': X}
    else:
      given = {'value_fn': nnx_value_fn(model, loss_fn, X, rngs)}
    params, tx = params_of(model), optax_sam.sam()
    tx.update(grads, tx.init(params), params, **given)

  with pytest.raises(ValueError, match='must be called before the first pass'):
    jit(step)(model, None if own else nnx.Rngs(1))


def test_a_copied_model_needs_no_first_pass():
  model, rngs = Network(), nnx.Rngs(1)
  value_fn = nnx_value_fn(nnx.clone(model), loss_fn, X, nnx.clone(rngs))
  expected = loss_fn(model, X, rngs)
  assert jnp.allclose(value_fn(params_of(model)), expected)
  assert jnp.allclose(value_fn(params_of(model)), expected)


def test_a_random_stream_outside_of_the_arguments_raises():
  (model, optimizer), rngs = make(), nnx.Rngs(1)
  value_fn = nnx_value_fn(model, lambda m, x: loss_fn(m, x, rngs), X)
  grads = nnx.grad(loss_fn)(model, X, rngs)
  with pytest.raises(ValueError, match=r'not among its arg.*, batch, rngs\)'):
    optimizer.update(model, grads, value_fn=value_fn)


@pytest.mark.parametrize('wrt', [nnx.LoRAParam, lambda p, _: 'lora_a' in p])
def test_adapters_with_another_filter_than_the_optimizer_raise(wrt):
  model = nnx.Sequential(
    nnx.LoRA(8, 2, 1, base_module=Network(), rngs=nnx.Rngs(0)),
  )
  model.layers[0].lora_b[...] = jnp.ones((2, 1))
  model.layers[0].base_module.dropout.deterministic = True
  loss = lambda model, x: jnp.mean(model(x) ** 2)
  tx = optax.chain(optax_sam.sam(RHO), optax.sgd(RATE))
  optimizer = nnx.Optimizer(model, tx, wrt=wrt)
  value_fn = nnx_value_fn(model, loss, X, wrt=wrt)
  grads = nnx.grad(loss, argnums=nnx.DiffState(0, wrt))(model, X)
  before = nnx.as_pure(nnx.state(model, wrt))
  moved = nnx.clone(model)
  nnx.update(moved, by_hand.ascend(before, nnx.as_pure(grads), RHO))
  second = nnx.grad(loss, argnums=nnx.DiffState(0, wrt))(moved, X)
  expected = jax.tree.map(
    lambda w, g: w - RATE * g, before, nnx.as_pure(second)
  )
  optimizer.update(model, grads, value_fn=value_fn)
  found = nnx.as_pure(nnx.state(model, wrt))
  assert by_hand.distance(found, expected) < 1e-6
  with pytest.raises(ValueError, match=r'wrt must.* 4 and.*wrt=nnx.LoRAParam'):
    optimizer.update(model, grads, value_fn=nnx_value_fn(model, loss, X))


@pytest.mark.parametrize(
  'wrong',
  [
    lambda model: jnp.mean(model(X)),
    lambda model: jnp.mean(model.dropout(X)),
    lambda model, x: jnp.mean(model(x)),
  ],
)
def test_a_loss_of_an_nnx_model_instead_of_parameters_raises(wrong):
  model, optimizer = make()
  grads = nnx.grad(loss_fn)(model, X, nnx.Rngs(1))
  with pytest.raises(ValueError, match=r'optax_sam\.flax\.nnx_value_fn'):
    optimizer.update(model, grads, value_fn=wrong)


@pytest.mark.parametrize('parts', [1, 2])
@pytest.mark.parametrize('name', ['loss_fn', 'per_example_loss_fn'])
def test_a_step_with_the_loss_of_an_nnx_model_raises(name, parts):
  graph, params = nnx.split(nnx.Linear(8, 1, rngs=nnx.Rngs(0)))
  tx = optax.chain(optax_sam.sam(), optax.sgd(RATE))

  def run(make_loss):
    given = {'loss_fn': None, name: make_loss}
    step = optax_sam.make_step(tx=tx, accumulate_steps=parts, **given)
    return step(params, tx.init(params), X)

  reduce = jnp.mean if name == 'loss_fn' else lambda x: x[:, 0]
  with pytest.raises(ValueError, match=r'needs a model: .* make_step pass'):
    run(lambda model, x: reduce(model(x)))
  run(lambda p, x: reduce(nnx.merge(graph, p)(x)))  # the advice


def test_frozen_and_other_dictionaries_are_told_apart():
  w, frozen = {'w': jnp.ones(3)}, flax.core.freeze({'w': jnp.ones(3)})
  state = TrainState.create(apply_fn=None, params=frozen, tx=optax_sam.sam())
  with pytest.raises(ValueError, match=r'got PyTreeDef.* for .*FrozenDict'):
    state.apply_gradients(grads=w, value_fn=lambda p: jnp.sum(p['w']))


def test_the_train_state_of_flax_raises_with_our_replacement():
  tx = optax.chain(optax_sam.sam(), optax.sgd(RATE))
  w = {'w': jnp.ones(3)}
  state = train_state.TrainState.create(apply_fn=None, params=w, tx=tx)
  with pytest.raises(ValueError, match=r'optax_sam\.flax\.TrainState'):
    state.apply_gradients(grads=w, value_fn=lambda p: jnp.sum(p['w']))


@pytest.mark.parametrize('way', ['value_fn', 'grad_fn', 'pair', 'examples'])
def test_8_bit_floats_of_flax_use_the_scales_of_the_first_pass(way):
  model = nn.Dense(4, dot_general_cls=fp8_ops.Fp8DirectDotGeneralOp)
  params = model.init(jax.random.key(0), X)
  losses = lambda params, x: jnp.mean(model.apply(params, x) ** 2, axis=1)
  loss = lambda params: jnp.mean(losses(params, X))
  grads = jax.grad(loss)(params)
  scales = grads[fp8_ops.OVERWRITE_WITH_GRADIENT]
  moved = by_hand.ascend(params['params'], grads['params'], RHO)
  second = jax.grad(loss)({**params, 'params': moved})['params']
  expected = jax.tree.map(lambda w, g: w - RATE * g, params['params'], second)
  tx = optax.chain(optax_sam.sam(RHO), optax.sgd(RATE))
  state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
  given = {
    'value_fn': {'value_fn': loss},
    'grad_fn': {'grad_fn': jax.grad(loss)},
    'pair': {'grad_fn': jax.value_and_grad(loss)},
    'examples': {'per_example_value_fn': losses, 'batch': X},
  }
  state = state.apply_gradients(grads=grads, **given[way])
  assert by_hand.distance(state.params['params'], expected) < 1e-6
  found = state.params[fp8_ops.OVERWRITE_WITH_GRADIENT]
  assert by_hand.distance(found, scales) == 0


def test_coupled_per_example_losses_differ_in_a_subset():
  losses = lambda w, x: (x @ w - jnp.mean(x @ w)) ** 2  # of one example: 0
  w, tx = jnp.ones(8), optax_sam.k_sam(ascent=1, descent=1)
  given = {'per_example_value_fn': losses, 'batch': X}
  found, _ = tx.update(w, tx.init(w), w, **given)
  assert not jnp.any(found)
