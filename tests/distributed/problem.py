"""What all devices train on: a small network, and every method there is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_sam
from optax_sam import elements
from optax_sam.wrappers.sampa import SampaState
from tests.contracts import table, training

STEPS = 10
EXAMPLES = 64
RHO = 0.1
LEARNING_RATE = 0.05
MOMENTUM = 0.9


def around(method, **arguments):
  """Returns a method around a base optimizer as one of its radius."""
  base = optax.sgd(LEARNING_RATE, MOMENTUM)
  return lambda rho, **given: method(base, rho=rho, **arguments, **given)


# A public method that the contracts know is here by itself; what holds a base
# optimizer, or stands instead of one, they leave out.
WRAPPERS = {
  'wsam_decoupled': table.Row(
    around(optax_sam.wsam_decoupled, learning_rate=LEARNING_RATE)
  ),
  'lookbehind': table.Row(around(optax_sam.lookbehind)),
  'sampa': table.Row(
    around(
      optax_sam.sampa,
      batch_like={
        name: jax.ShapeDtypeStruct((EXAMPLES, *shape), jnp.float32)
        for name, shape in (('weight', ()), ('x', (4,)), ('y', ()))
      },
    ),
    needs_examples=True,
    ascends_alike=True,
  ),
  'b_sam': table.Row(
    optax_sam.b_sam,
    {'rho': RHO, 'micro_batches': 3, 'num_data': 900, 'key': 1},
    perturbs=False,
    needs_examples=True,
  ),
  'entropy_sgd': table.Row(
    optax_sam.entropy_sgd,
    {'inner_steps': 4, 'noise': 0.01, 'key': 1},
    perturbs=False,
  ),
}
METHODS = table.METHODS | WRAPPERS
ROWS = {
  **table.ROWS,
  **WRAPPERS,
  'sam of signs': table.variant('sam', p=np.inf),
  'look_sam by leaf': table.variant('look_sam', per_leaf=True),
  'ordered_sgd of all': table.variant('ordered_sgd', k=1.0),
  'm_sam by 4': table.variant('m_sam', micro_batch_size=4),
  'm_sam by 8': table.variant('m_sam', micro_batch_size=8),
  # All examples have a part in the Fisher information, wherever they are.
  'sparse_sam_fisher of all': dataclasses.replace(
    table.variant('sparse_sam_fisher', num_samples=EXAMPLES),
    needs_examples=False,
  ),
}


def settings(name):
  """Returns for `sync_ascent` what there is to choose."""
  return (False, True) if ROWS[name].perturbs else (False,)


def optimizer(name, base=None, **changes):
  """Returns a method with its base optimizer."""
  method = ROWS[name](RHO, **changes)
  if name in WRAPPERS:
    return method
  base = optax.sgd(LEARNING_RATE, MOMENTUM) if base is None else base
  return optax.chain(method, base)


def over_axis(name, *, sync, base=None):
  """Returns the same for devices that share the axis 'data'."""
  changes = {'sync_ascent': sync} if ROWS[name].perturbs else {}
  return optimizer(name, base, axis_name='data', **changes)


def params():
  """Returns weights that eight devices can hold an eighth of."""
  numbers = np.sin(np.arange(1, 50)).astype(np.float32)
  return {
    'hidden': {
      'bias': jnp.asarray(0.1 * numbers[:8]),
      'kernel': jnp.asarray(0.7 * numbers[8:40].reshape(4, 8)),
    },
    'offset': jnp.asarray(0.1 * numbers[40]),
    'out': jnp.asarray(0.5 * numbers[41:49]),
  }


def batches():
  """Returns the batches of all steps, of which every device sees another part.

  A leaf is of shape (steps, examples, ...).
  """
  random = np.random.default_rng(0)
  x = random.normal(size=(STEPS, EXAMPLES, 4))
  x += 0.3 * np.sin(np.arange(EXAMPLES) // 8)[:, None]
  y = np.sin(x.sum(axis=2)) + 0.1 * random.normal(size=(STEPS, EXAMPLES))
  y += np.cos(2.0 * (np.arange(EXAMPLES) // 8))
  # Some steps are sharper than others.
  weight = 1 + 0.8 * np.sin(1.9 * np.arange(STEPS)) + np.zeros_like(y.T)
  return {
    'weight': jnp.asarray(weight.T, jnp.float32),
    'x': jnp.asarray(x, jnp.float32),
    'y': jnp.asarray(y, jnp.float32),
  }


def losses(params, batch):
  """Returns the weighted squared error of every example."""
  layer = params['hidden']
  hidden = jnp.tanh(batch['x'] @ layer['kernel'] + layer['bias'][None])
  error = hidden @ params['out'] + params['offset'] - batch['y']
  return batch['weight'] * jnp.square(error)


def train_step(tx, params, opt_state, batch, cast_over=None):
  """The one training step; its gradient is local to a device.

  Args:
    tx: the optimizer.
    params: the parameters.
    opt_state: state of the optimizer.
    batch: rows of this device.
    cast_over: axis over which a gradient would be summed otherwise.
  """
  given = training.functions(batch, losses)
  local = params
  if cast_over is not None:
    local = jax.lax.pcast(params, cast_over, to='varying')
  grads = jax.grad(given['value_fn'])(local)
  updates, opt_state = tx.update(grads, opt_state, params, **given)
  return optax.apply_updates(params, updates), opt_state


def train(tx, params, opt_state, batches, cast_over=None):
  """Takes all steps.

  Returns:
    (parameters, state of the optimizer without typed keys, whether every step
    took the second gradient).
  """

  def body(state, batch):
    state = train_step(tx, *state, batch, cast_over)
    # One of them ascends nowhere.
    known = elements.states(state[1], optax_sam.SharpnessAwareState)
    return state, known[0].info.ascended if known else jnp.bool_(True)

  state, ascended = jax.lax.scan(body, (params, opt_state), batches)
  params, opt_state = without_keys(state)
  return params, without_batch(opt_state), ascended


def specs(opt_state):
  """Returns how a state is split over the axis 'data', in `shard_map`."""
  whole = jax.sharding.PartitionSpec()
  if not isinstance(opt_state, SampaState):
    return whole
  split = jax.sharding.PartitionSpec('data')
  return SampaState(whole, whole, whole, batch=split)


def without_batch(opt_state):
  """Returns a state without what every device has of its own."""
  is_one = isinstance(opt_state, SampaState)
  return opt_state._replace(batch=()) if is_one else opt_state


def without_keys(tree):
  """Returns a tree with keys as the integers that they are made of."""

  def data(leaf):
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf

  return jax.tree.map(data, tree)
