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
# # optax_sam in ten minutes
#
# A small network learns handwritten digits three times: with SGD, with SAM, and
# with AE-SAM, which computes SAM's perturbed gradient only in some steps. Only
# one line of code differs.
#
# A third of the training labels is wrong on purpose. A network that trains long
# enough memorizes wrong labels, and SAM helps in this case.

# %%
import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from style import COLORS

import optax_sam
from optax_sam.flax import TrainState

# %% [markdown]
# ## The data
#
# The data are the 1797 images of 8 x 8 pixels in scikit-learn. Half of them are
# for training. A wrong label is one of the other nine digits.

# %%
EPOCHS, BATCH_SIZE, NOISE = 40, 64, 1 / 3

digits = load_digits()
x_train, x_test, y_train, y_test = train_test_split(
  jnp.asarray(digits.data / 16, jnp.float32),
  jnp.asarray(digits.target),
  test_size=0.5,
  random_state=0,
)
coin, shift = jax.random.split(jax.random.key(1))
wrong = jax.random.bernoulli(coin, NOISE, y_train.shape)
shifts = jax.random.randint(shift, y_train.shape, 1, 10)
noisy_labels = jnp.where(wrong, (y_train + shifts) % 10, y_train)

steps_per_epoch = len(x_train) // BATCH_SIZE
total_steps = EPOCHS * steps_per_epoch
print(f'{len(x_train)} images, {int(wrong.sum())} with a wrong label')

# %% [markdown]
# ## One step for every method
#
# `value_fn` is the only addition to an ordinary step: the method differentiates
# it at the perturbed parameters. The rest of the chain ignores it, so any Optax
# optimizer works.


# %%
class Network(nn.Module):
  """Two hidden layers."""

  @nn.compact
  def __call__(self, x):
    for _ in range(2):
      x = nn.relu(nn.Dense(128)(x))
    return nn.Dense(10)(x)


@jax.jit
def train_step(state, x, y):
  def value_fn(params):
    logits = state.apply_fn({'params': params}, x)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    return jnp.mean(losses)

  loss, grads = jax.value_and_grad(value_fn)(state.params)
  state = state.apply_gradients(grads=grads, value_fn=value_fn)
  return state, loss


@jax.jit
def test_accuracy(state):
  logits = state.apply_fn({'params': state.params}, x_test)
  return jnp.mean(jnp.argmax(logits, axis=-1) == y_test)


# %% [markdown]
# ## Training
#
# A method is a gradient transformation, placed first in the chain. With
# `optax.identity()` instead, the chain is plain SGD. All three start from the
# same parameters and see the same batches.


# %%
def train(method):
  network = Network()
  state = TrainState.create(
    apply_fn=network.apply,
    params=network.init(jax.random.key(0), x_train[:1])['params'],
    tx=optax.chain(method, optax.sgd(0.1, momentum=0.9)),
  )
  log, accuracies = [], []
  for epoch in range(EPOCHS):
    order = jax.random.permutation(jax.random.key(epoch), len(x_train))
    for rows in order[: steps_per_epoch * BATCH_SIZE].reshape(-1, BATCH_SIZE):
      state, loss = train_step(state, x_train[rows], noisy_labels[rows])
      log.append({'loss': loss, **method_metrics(state.opt_state)})
    accuracies.append(test_accuracy(state))
  columns = {key: jnp.stack([row[key] for row in log]) for key in log[0]}
  return {**columns, 'test_accuracy': jnp.stack(accuracies)}


def method_metrics(opt_state):
  """Returns the metrics of a method; none for plain SGD."""
  has_method = isinstance(opt_state[0], optax_sam.SharpnessAwareState)
  return optax_sam.metrics(opt_state) if has_method else {}


RHO = 0.2
runs = {
  'SGD': train(optax.identity()),
  'SAM': train(optax_sam.sam(RHO)),
  'AE-SAM': train(optax_sam.ae_sam(RHO, total_steps=total_steps)),
}

# %% [markdown]
# ## Results
#
# Accuracy is measured on test images with true labels, at the end and at its
# best. *Gradients* is the mean number per step: 1 is the cost of SGD.

# %%
for name, run in runs.items():
  accuracy = run['test_accuracy']
  gradients = 1 + float(jnp.mean(run.get('ascended', jnp.zeros(1))))
  print(
    f'{name:7} test accuracy {float(accuracy[-1]):.3f} '
    f'(best {float(accuracy.max()):.3f}), gradients {gradients:.2f}'
  )

# %% [markdown]
# This shows how to use the library; it is not evidence. There is one seed, and
# the learning rate suits SAM better than SGD, which could memorize less with a
# smaller one. `make demo` compares methods with tuned settings over several
# seeds, and reports which differences are statistically significant.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3))
for name, run in runs.items():
  epochs = jnp.arange(1, EPOCHS + 1)
  left.plot(epochs, run['test_accuracy'], color=COLORS[name], label=name)
  per_epoch = run['loss'].reshape(EPOCHS, -1).mean(axis=1)
  right.plot(epochs, per_epoch, color=COLORS[name], label=name)
left.set(title='Accuracy, true labels', xlabel='epoch')
right.set(title='Training loss, noisy labels', xlabel='epoch')
right.legend()
plt.show()

# %% [markdown]
# ## When does AE-SAM compute the perturbed gradient?
#
# It tracks a moving mean and variance of the squared gradient norm, and takes
# an ascent step if the norm is above a threshold. The threshold starts one
# standard deviation above the mean and ends one below, so most ascent steps are
# late in training.
#
# The metrics include `policy/squared_norm`, `policy/threshold`, and whether the
# step `ascended`.

# %%
run = runs['AE-SAM']
steps = jnp.arange(total_steps)
took = run['ascended']
window = slice(total_steps // 2, total_steps // 2 + 60)

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3))
norm, threshold = run['policy/squared_norm'], run['policy/threshold']
left.plot(
  steps[window], threshold[window], color=COLORS['threshold'], label='threshold'
)
for chosen, label in ((took, 'perturbed gradient'), (~took, 'skipped')):
  inside = steps[window][chosen[window]]
  left.plot(inside, norm[inside], 'o', color=COLORS[label], label=label)
left.set(title='Squared gradient norm, 60 steps', xlabel='step', yscale='log')
left.legend()

fraction = took.reshape(EPOCHS, -1).mean(axis=1)
right.bar(
  jnp.arange(1, EPOCHS + 1), fraction, color=COLORS['perturbed gradient']
)
right.set(title='Steps with a perturbed gradient', xlabel='epoch', ylim=(0, 1))
plt.show()

# %% [markdown]
# ## What to read next
#
# - `README.md`: the other methods, batch norm and dropout, several devices.
# - `help(optax_sam.ae_sam)`: the rule, the defaults and their sources.
# - `help(optax_sam.sharpness_aware)`: how to compose a method.
# - `make demo`: a comparison with intervals, costs and sharpness.
