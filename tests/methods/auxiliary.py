"""What SAF and MESA are tried on, and what is asked of both."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

import optax_sam
from tests import compiling

TAU, WEIGHT = 2.0, 0.7


def logits_of(seed, rows=4, classes=3):
  return 3 * np.random.default_rng(seed).standard_normal((rows, classes))


def network(classes=10, width=64):
  def apply(params, x):
    return jnp.tanh(x @ params['in']) @ params['out']

  shapes = {'in': (32, width), 'out': (width, classes)}
  params = {
    name: 0.3 * jax.random.normal(jax.random.key(number), shape)
    for number, (name, shape) in enumerate(shapes.items())
  }
  batch = {
    'x': jax.random.normal(jax.random.key(2), (512, 32)),
    'y': jnp.arange(512) % classes,
    'ids': jnp.arange(512)[::-1],
  }
  return apply, params, batch


def stepping(apply, kind, weight=0.3):
  """Returns a whole training step, and what the term keeps before it."""
  saf = optax_sam.saf_loss(weight=weight)
  mesa = optax_sam.mesa_loss(weight=weight)
  tx = optax.sgd(0.1, 0.9)

  def step(params, opt_state, memory, batch, epoch):
    if kind == 'mesa':
      memory = mesa.update(params, memory)
      targets = apply(memory.average, batch['x'])

    def loss(params):
      logits = apply(params, batch['x'])
      own = optax.softmax_cross_entropy_with_integer_labels(logits, batch['y'])
      total = jnp.mean(own)
      if kind == 'saf':
        total += saf.loss(logits, memory, batch['ids'], epoch)
      if kind == 'mesa':
        total += mesa.loss(logits, targets)
      return total, logits

    grads, logits = jax.grad(loss, has_aux=True)(params)
    if kind == 'saf':
      memory = saf.update(logits, memory, batch['ids'], epoch)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, memory

  def init(params):
    memories = {
      'saf': lambda: saf.init(1024, 10),
      'mesa': lambda: mesa.init(params),
    }
    return tx.init(params), memories.get(kind, tuple)()

  return step, init


def operations(kind):
  """Returns how many operations a step takes, relative to one without."""
  apply, params, batch = network(width=256)
  found = []
  for one in (kind, None):
    step, init = stepping(apply, one)
    args = (params, *jax.eval_shape(init, params), batch, 5)
    program = jax.jit(step, **compiling.READ_AS_USERS)
    found.append(program.lower(*args).compile().cost_analysis()['flops'])
  return found[0] / found[1]


def assert_a_weight_of_zero_is_the_base(kind):
  """To the bit, over the epochs in which there is a term."""
  apply, start, batch = network()
  results = []
  for name, weight in ((None, 0.0), (kind, 0.0), (kind, 0.3)):
    step, init = stepping(apply, name, weight)
    step = jax.jit(step, **compiling.AS_USERS)
    params, (opt_state, memory) = start, init(start)
    for epoch in range(7):
      params, opt_state, memory = step(params, opt_state, memory, batch, epoch)
    results.append(params)
  base, zero, more = results
  for name in base:
    np.testing.assert_array_equal(zero[name], base[name])
    assert jnp.any(more[name] != base[name])


def assert_no_term(term, z):
  """Raises unless there is no term, in float32, and no gradient."""
  value, gradient = jax.jit(jax.value_and_grad(term))(z)
  assert value.dtype == jnp.float32
  assert gradient.dtype == z.dtype
  # But for rounding, against 0.02 of logits that have nothing in common.
  np.testing.assert_allclose(value, 0, atol=1e-6)
  np.testing.assert_allclose(gradient.astype('float32'), 0, atol=1e-8)


def assert_padding_adds_rows(term):
  """Raises unless half a batch that is padding counts in the mean alone.

  Args:
    term: of logits, which rows they are, and which of them are examples.

  Returns:
    The logits, before the second half is made not finite.
  """
  z = jnp.asarray(logits_of(9), 'float32')
  padded = z.at[2:].set(jnp.nan)
  gradient = jax.value_and_grad(term)
  value, change = gradient(padded, slice(4), np.arange(4) < 2)
  part, part_change = gradient(z[:2], slice(2), None)
  np.testing.assert_allclose(value, part / 2, rtol=1e-6)
  np.testing.assert_allclose(change[:2], part_change / 2, rtol=1e-5)
  assert not jnp.any(change[2:])
  return z


def assert_survives(state, like, path):
  """Raises unless a checkpoint gives a state back, to the bit."""
  with ocp.StandardCheckpointer() as checkpoints:
    checkpoints.save(path / 'state', state)
    checkpoints.wait_until_finished()
    found = checkpoints.restore(path / 'state', like)
  assert jax.tree.structure(found) == jax.tree.structure(state)
  for one, other in zip(
    jax.tree.leaves(found), jax.tree.leaves(state), strict=True
  ):
    assert one.dtype == other.dtype
    np.testing.assert_array_equal(one, other)
