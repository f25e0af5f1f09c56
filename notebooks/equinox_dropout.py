# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # An Equinox model with dropout, saved and resumed
#
# An Equinox model is a pytree that also has leaves that are no parameters, such
# as activation functions. A method gets the parameters, and the loss gets the
# whole model. `equinox_value_fn` connects the two. It also stores the key of
# dropout, so both passes of a step draw the same mask.
#
# This notebook trains a network with SGD, SAM and AE-SAM in one compiled loop.
# Then it saves a run in the middle, and shows that the resumed run is the same.

# %%
import functools
import io

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits
from style import COLORS

import optax_sam
from optax_sam.equinox import (
  deserialise_leaf,
  equinox_value_fn,
  serialise_leaf,
)

# %% [markdown]
# ## The data
#
# The data are digits of 8 x 8 pixels. 30 % of the training labels are wrong;
# all test labels are true.

# %%
EPOCHS, BATCH_SIZE, NOISE = 40, 50, 0.3

digits, random = load_digits(), np.random.default_rng(0)
order = random.permutation(len(digits.target))
images, labels = jnp.float32(digits.data[order] / 16), digits.target[order]
shifts = random.integers(1, 10, 800) * (random.random(800) < NOISE)
x_train, y_train = images[:800], jnp.asarray((labels[:800] + shifts) % 10)
x_test, y_test = images[800:], jnp.asarray(labels[800:])
rows = [random.permutation(800) for _ in range(EPOCHS)]
rows = jnp.reshape(jnp.array(rows), (EPOCHS, -1, BATCH_SIZE))
total_steps = rows.shape[0] * rows.shape[1]

# %% [markdown]
# ## The model
#
# The activation function is a leaf of the model, and `eqx.filter` replaces it
# with `None`. Leaves that are `None` are neither perturbed nor updated.


# %%
class Network(eqx.Module):
  """A network with one hidden layer and dropout."""

  first: eqx.nn.Linear
  second: eqx.nn.Linear
  dropout: eqx.nn.Dropout
  activation: object

  def __init__(self, key):
    keys = jax.random.split(key)
    self.first = eqx.nn.Linear(64, 128, key=keys[0])
    self.second = eqx.nn.Linear(128, 10, key=keys[1])
    self.dropout = eqx.nn.Dropout(0.2)
    self.activation = jax.nn.relu

  def __call__(self, x, key=None, *, inference=False):
    hidden = self.activation(self.first(x))
    return self.second(self.dropout(hidden, key=key, inference=inference))


def loss_fn(model, x, y, key):
  logits = jax.vmap(model)(x, jax.random.split(key, len(x)))
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
  return jnp.mean(losses)


def test_accuracy(model):
  logits = jax.vmap(functools.partial(model, inference=True))(x_test)
  return jnp.mean(jnp.argmax(logits, axis=-1) == y_test)


def params_of(model):
  return eqx.filter(model, eqx.is_inexact_array)


model = Network(jax.random.key(0))
print(f'{len(jax.tree.leaves(model))} leaves of the model')
print(f'{len(jax.tree.leaves(params_of(model)))} leaves with parameters')

# %% [markdown]
# ## The step
#
# Three lines are new or changed: the function, the parameters as the third
# argument of `update`, and `value_fn`.


# %%
def train_step(tx, model, opt_state, x, y, key):
  value_fn = equinox_value_fn(model, loss_fn, x, y, key)  # new
  loss, grads = eqx.filter_value_and_grad(loss_fn)(model, x, y, key)
  updates, opt_state = tx.update(
    grads,
    opt_state,
    params_of(model),  # new
    value_fn=value_fn,  # new
  )
  return eqx.apply_updates(model, updates), opt_state, loss


# %% [markdown]
# ## Both passes draw the same mask
#
# With a radius of 0, both passes are at the same point. If they draw the same
# dropout mask, the perturbed loss equals the loss.

# %%
tx = optax_sam.sam(0.0)
key, batch = jax.random.key(3), rows[0, 0]
opt_state = tx.init(params_of(model))
_, opt_state, loss = eqx.filter_jit(train_step)(
  tx, model, opt_state, x_train[batch], y_train[batch], key
)
same = optax_sam.metrics(opt_state)['perturbed_loss']
other = loss_fn(model, x_train[batch], y_train[batch], jax.random.key(4))
np.testing.assert_allclose(same, loss, rtol=1e-6)
print(f'loss {loss:.4f}, perturbed loss {same:.4f}')
print(f'loss with another mask {other:.4f}')

# %% [markdown]
# ## Training
#
# A run is a loop in one compiled function. `eqx.partition` separates the arrays
# that a loop can carry from the rest of the model. The keys of dropout depend
# on the number of the step, so a resumed run draws the same masks.


# %%
def with_method(method):
  return optax.chain(method, optax.sgd(0.1, momentum=0.9))


@eqx.filter_jit
def train(tx, model, opt_state, first_epoch, epochs):
  """Trains some epochs; returns model, state and a row for each epoch."""
  _, static = eqx.partition(model, eqx.is_inexact_array)

  def step(carry, inputs):
    params, opt_state = carry
    number, batch = inputs
    model, opt_state, loss = train_step(
      tx,
      eqx.combine(params, static),
      opt_state,
      x_train[batch],
      y_train[batch],
      jax.random.fold_in(jax.random.key(1), number),
    )
    return (params_of(model), opt_state), loss

  def epoch(carry, inputs):
    carry, losses = jax.lax.scan(step, carry, inputs)
    accuracy = test_accuracy(eqx.combine(carry[0], static))
    return carry, {'loss': jnp.mean(losses), 'test_accuracy': accuracy}

  numbers = jnp.arange(total_steps).reshape(rows.shape[:2])
  inputs = jax.tree.map(
    lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, first_epoch, epochs),
    (numbers, rows),
  )
  carry, log = jax.lax.scan(epoch, (params_of(model), opt_state), inputs)
  return eqx.combine(carry[0], static), carry[1], log


RHO = 0.2
methods = {
  'SGD': optax.with_extra_args_support(optax.identity()),
  'SAM': optax_sam.sam(RHO),
  'AE-SAM': optax_sam.ae_sam(RHO, total_steps=total_steps),
}
runs = {}
for name, method in methods.items():
  tx = with_method(method)
  runs[name] = train(tx, model, tx.init(params_of(model)), 0, EPOCHS)
  _, opt_state, log = runs[name]
  gradients = 1.0
  if name != 'SGD':
    perturbed = optax_sam.metrics(opt_state)['second_gradients']
    gradients += float(perturbed) / total_steps
  accuracy = log['test_accuracy']
  print(
    f'{name:6} test accuracy {accuracy[-1]:.3f} (best {accuracy.max():.3f}), '
    f'gradients {gradients:.2f}'
  )

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3))
epochs = np.arange(1, EPOCHS + 1)
for name, (_, _, log) in runs.items():
  left.plot(epochs, log['test_accuracy'], color=COLORS[name], label=name)
  right.plot(epochs, log['loss'], color=COLORS[name], label=name)
left.set(title='Test accuracy, true labels', xlabel='epoch')
right.set(title='Training loss, noisy labels', xlabel='epoch')
right.legend()
plt.show()

# %% [markdown]
# One seed shows how to use the library; it is not evidence.
#
# ## Save and resume
#
# SS-SAM draws at random which steps compute a perturbed gradient, so its state
# has a PRNG key. Equinox cannot write typed keys: pass
# `serialise_leaf` and `deserialise_leaf`. Here a run is saved after half of the
# epochs, read into new objects and continued.

# %%
half = EPOCHS // 2
tx = with_method(optax_sam.ss_sam(RHO, probability=0.5, key=0))
first, middle = jnp.array([0, half])  # as arrays, so it compiles once
*saved, first_log = train(tx, model, tx.init(params_of(model)), first, half)
whole, _, whole_log = train(tx, *saved, middle, half)

file = io.BytesIO()
eqx.tree_serialise_leaves(file, tuple(saved), filter_spec=serialise_leaf)
print(f'{len(file.getvalue())} bytes')

file.seek(0)
other = Network(jax.random.key(5))
like = other, tx.init(params_of(other))
read = eqx.tree_deserialise_leaves(file, like, deserialise_leaf)
resumed, _, resumed_log = train(tx, *read, middle, half)

for one, two in zip(
  jax.tree.leaves(params_of(whole)),
  jax.tree.leaves(params_of(resumed)),
  strict=True,
):
  np.testing.assert_array_equal(one, two)
print('the resumed run ends at the same parameters')

# %%
figure, axis = plt.subplots(figsize=(6, 3))
axis.plot(
  epochs,
  np.concatenate([first_log['test_accuracy'], whole_log['test_accuracy']]),
  color=COLORS['SS-SAM'],
  alpha=0.3,
  linewidth=6,
  label='without interruption',
)
for part, log, style in (
  (epochs[:half], first_log, '-'),
  (epochs[half:], resumed_log, '--'),
):
  label = 'resumed' if style == '--' else 'until saved'
  axis.plot(
    part, log['test_accuracy'], style, color=COLORS['SS-SAM'], label=label
  )
axis.axvline(half + 0.5, color='black', linestyle=':')
axis.set(title='SS-SAM, test accuracy', xlabel='epoch')
axis.legend()
plt.show()

# %% [markdown]
# ## Summary
#
# - `init` and `update` get `eqx.filter(model, eqx.is_inexact_array)`.
# - Call `equinox_value_fn` before the unperturbed pass. With batch norm this
#   matters: the state of a stateful layer may be used only once.
# - Save the optimizer state with `serialise_leaf`.
