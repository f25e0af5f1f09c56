"""Equinox: `None` in parameters, losses of models, states used once."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest

import optax_sam
from optax_sam.equinox import (
  deserialise_leaf,
  equinox_per_example_value_fn,
  equinox_value_fn,
  serialise_leaf,
)
from tests.frameworks import by_hand

STRICT = False  # layers of Equinox need promotion
RHO, RATE = 0.3, 0.1
KEY = jax.random.key(5)
X = jax.random.normal(jax.random.key(1), (6, 3))
ADVICE = r'eqx\.partition\(model.*eqx\.combine\(p, static\).*equinox_value_fn'


class Network(eqx.Module):
  """A network with an integer buffer, a function, and a layer to freeze."""

  first: eqx.nn.Linear
  last: eqx.nn.Linear
  order: jax.Array
  activation: object
  dropout: eqx.nn.Dropout

  def __init__(self):
    keys = jax.random.split(jax.random.key(0))
    self.first = eqx.nn.Linear(3, 8, key=keys[0])
    self.last = eqx.nn.Linear(8, 'scalar', key=keys[1])
    self.order = jnp.array([2, 0, 1])
    self.activation = jax.nn.tanh
    self.dropout = eqx.nn.Dropout(0.5)

  def __call__(self, x, key):
    hidden = self.activation(self.first(x[self.order]))
    return self.last(self.dropout(hidden, key=key))


class Counting(eqx.Module):
  """A layer with a state: the loss grows with the number of its calls."""

  weight: jax.Array
  uses: eqx.nn.StateIndex

  def __init__(self):
    self.weight, self.uses = jnp.array([3.0, 4.0]), eqx.nn.StateIndex(1.0)

  def __call__(self, state):
    uses = state.get(self.uses)
    return uses * self.weight, state.set(self.uses, uses + 1)


def losses_fn(model, x, keys):
  return (jax.vmap(model)(x, keys) - 1) ** 2


def loss_fn(model, x, keys):
  losses = losses_fn(model, x, keys)
  return jnp.mean(losses), losses


def of_counting(model, state):
  out, state = model(state)
  return jnp.sum(out**2), state


def step_by_hand(loss, params):
  second = jax.grad(loss)(by_hand.ascend(params, jax.grad(loss)(params), RHO))
  return jax.tree.map(lambda w, g: w - RATE * g, params, second)


def frozen_first(model):
  spec = jax.tree.map(eqx.is_inexact_array, model)
  return eqx.tree_at(lambda m: m.first, spec, replace=False)


@pytest.mark.parametrize('filter_jit', [lambda f: f, eqx.filter_jit])
@pytest.mark.parametrize(
  'chosen', [lambda _: eqx.is_inexact_array, frozen_first]
)
def test_both_passes_use_the_same_model_and_key(chosen, filter_jit):
  model, keys = Network(), jax.random.split(jax.random.key(2), 6)
  params, static = eqx.partition(model, chosen(model))
  tx = optax.chain(optax_sam.sam(RHO), optax.sgd(RATE))

  @filter_jit
  def step(model, params, opt_state, keys):
    value_fn = equinox_value_fn(model, loss_fn, X, keys=keys)
    # Only of the parameters, because other leaves have no gradient.
    loss = lambda p: loss_fn(eqx.combine(p, static), X, keys)[0]
    grads = eqx.filter_grad(loss)(params)
    updates, _ = tx.update(grads, opt_state, params, value_fn=value_fn)
    return eqx.apply_updates(params, updates)

  loss = lambda p: loss_fn(eqx.combine(p, static), X, keys)[0]
  found = step(model, params, tx.init(params), keys)
  assert by_hand.distance(found, step_by_hand(loss, params)) < 1e-6


def test_gradients_of_integer_arrays_are_none():
  model, keys = Network(), jax.random.split(jax.random.key(2), 6)
  grads, _ = eqx.filter_grad(loss_fn, has_aux=True)(model, X, keys)
  params, static = eqx.partition(model, eqx.is_inexact_array)
  arrays = eqx.filter(model, eqx.is_array)  # including the integers
  tx = optax.chain(optax_sam.sam(RHO), optax.sgd(RATE))
  value_fn = equinox_value_fn(model, loss_fn, X, keys)
  updates, _ = tx.update(grads, tx.init(arrays), arrays, value_fn=value_fn)
  found = eqx.apply_updates(model, updates)
  loss = lambda p: loss_fn(eqx.combine(p, static), X, keys)[0]
  found_params = eqx.filter(found, eqx.is_inexact_array)
  assert by_hand.distance(found_params, step_by_hand(loss, params)) < 1e-6
  assert found.order.tolist() == [2, 0, 1]


def test_methods_select_examples_by_the_losses_of_the_model():
  model, keys = Network(), jax.random.split(jax.random.key(2), 6)
  model = eqx.nn.inference_mode(model)
  params, static = eqx.partition(model, eqx.is_inexact_array)
  of_batch = lambda model, batch: losses_fn(model, *batch)
  losses = equinox_per_example_value_fn(model, of_batch)
  grads = eqx.filter_grad(lambda m: jnp.mean(losses_fn(m, X, keys)))(model)
  tx = optax.chain(optax_sam.k_sam(RHO, ascent=2, descent=2), optax.sgd(RATE))
  updates, _ = tx.update(
    grads,
    tx.init(params),
    params,
    per_example_value_fn=losses,
    batch=(X, keys),
  )
  worst = jnp.argsort(-losses_fn(model, X, keys))[:2]
  loss = lambda p: loss_fn(eqx.combine(p, static), X[worst], keys[worst])[0]
  found = eqx.apply_updates(params, updates)
  assert by_hand.distance(found, step_by_hand(loss, params)) < 1e-6


def test_the_state_is_restored_before_the_perturbed_pass():
  model, state = eqx.nn.make_with_state(Counting)()
  params = eqx.filter(model, eqx.is_inexact_array)
  tx = optax.chain(optax_sam.sam(1.0), optax.sgd(0.1))
  value_fn = equinox_value_fn(model, of_counting, state)
  grads, new = eqx.filter_grad(of_counting, has_aux=True)(model, state)
  updates, _ = tx.update(grads, tx.init(params), params, value_fn=value_fn)
  found = eqx.apply_updates(model, updates)
  # The loss is that of one call, |w|^2: w - 0.1 * 2 * (w + w / 5).
  assert jnp.allclose(found.weight, 0.76 * model.weight)
  assert new.get(model.uses) == 2
  with pytest.raises(ValueError, match='called before the first pass'):
    equinox_value_fn(model, of_counting, state)


def test_a_model_instead_of_parameters_raises():
  model, tx = Network(), optax_sam.sam()
  params = eqx.filter(model, eqx.is_array)
  loss = lambda m: jnp.mean(jax.vmap(m)(X, jax.random.split(KEY, 6)))
  given = (params, tx.init(params))
  with pytest.raises(ValueError, match=f"a \\w+ at 'act.*{ADVICE}"):
    tx.init(model)
  with pytest.raises(ValueError, match=f"a float at 'p': .*{ADVICE}"):
    tx.init(model.dropout)
  with pytest.raises(ValueError, match=f"a \\w+ at 'act.*{ADVICE}"):
    tx.update(*given, model, value_fn=loss)
  with pytest.raises(ValueError, match=f"{ADVICE}.*'NoneType' object is not"):
    tx.update(*given, params, value_fn=loss)
  chained = optax.chain(tx, optax.sgd(0.1))
  step = optax_sam.make_step(lambda m, _: loss(m), chained)
  with pytest.raises(ValueError, match=f"a \\w+ at 'act.*{ADVICE}"):
    step(model, chained.init(params), None)
  with pytest.raises(ValueError, match=f"{ADVICE}.*'NoneType' object is not"):
    step(params, chained.init(params), None)


def test_parameters_of_another_model_raise():
  value_fn = equinox_value_fn(Network(), loss_fn, X, None)
  with pytest.raises(ValueError, match='have the structure of the model'):
    value_fn(Network().first)


def test_states_with_typed_keys_are_saved_and_loaded(tmp_path):
  tx = optax_sam.ss_sam(key=KEY)
  like, path = tx.init(jnp.ones(3)), tmp_path / 'state.eqx'
  _, state = tx.update(jnp.ones(3), like, jnp.ones(3), value_fn=jnp.sum)
  eqx.tree_serialise_leaves(path, state, filter_spec=serialise_leaf)
  found = eqx.tree_deserialise_leaves(path, like, deserialise_leaf)
  assert eqx.tree_equal(found, state)
