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
# # A convolutional network with batch norm, in Flax NNX
#
# A SAM step runs the network twice: at the weights and at the perturbed
# weights. With batch norm, only the first pass may update the running
# statistics, because they are used at test time with the unperturbed weights.
# With dropout, both passes must draw the same mask. `nnx_value_fn` provides
# both.
#
# This notebook trains a network with SGD, with SAM, and with SAM of the
# normalization layers only.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from mnist1d.data import get_dataset_args, make_dataset
from style import COLORS

import optax_sam
from optax_sam.flax import nnx_value_fn

# %% [markdown]
# ## The data
#
# MNIST-1D is a small problem on which a convolution matters: signals of 40
# values in ten classes. The package computes them, so nothing is downloaded.
# Half of its training set is used, with 20 % wrong labels. All test labels are
# true.

# %%
EPOCHS, BATCH_SIZE, NOISE = 16, 100, 0.2

made, random = make_dataset(get_dataset_args()), np.random.default_rng(0)
x_train, y_train = jnp.float32(made['x'][:2000, :, None]), made['y'][:2000]
x_test, y_test = jnp.float32(made['x_test'][:, :, None]), made['y_test']
wrong = random.random(len(y_train)) < NOISE
shifts = random.integers(1, 10, len(y_train))
noisy_labels = jnp.asarray(np.where(wrong, (y_train + shifts) % 10, y_train))
rows = [random.permutation(len(y_train)) for _ in range(EPOCHS)]
rows = jnp.reshape(jnp.array(rows), (EPOCHS, -1, BATCH_SIZE))

figure, axes = plt.subplots(1, 5, figsize=(9, 1.6), sharey=True)
for axis, label in zip(axes, range(5), strict=True):
  axis.plot(x_train[np.flatnonzero(y_train == label)[0]], color='black')
  axis.set(title=f'class {label}')
plt.show()

# %% [markdown]
# ## The network
#
# It has two convolutions, each with batch norm, then dropout and a linear
# layer.


# %%
class Network(nnx.Module):
  """Two convolutions with batch norm, and a linear layer."""

  def __init__(self, rngs):
    self.conv_1 = nnx.Conv(1, 16, (5,), strides=2, use_bias=False, rngs=rngs)
    self.norm_1 = nnx.BatchNorm(16, momentum=0.9, rngs=rngs)
    self.conv_2 = nnx.Conv(16, 32, (3,), strides=2, use_bias=False, rngs=rngs)
    self.norm_2 = nnx.BatchNorm(32, momentum=0.9, rngs=rngs)
    self.dropout = nnx.Dropout(0.1)
    self.out = nnx.Linear(320, 10, rngs=rngs)

  def __call__(self, x, rngs=None):
    x = nnx.relu(self.norm_1(self.conv_1(x)))
    x = nnx.relu(self.norm_2(self.conv_2(x)))
    x = self.dropout(x.reshape(len(x), -1), rngs=rngs)
    return self.out(x)


def loss_fn(model, rngs, x, y):
  losses = optax.softmax_cross_entropy_with_integer_labels(model(x, rngs), y)
  return jnp.mean(losses)


# %% [markdown]
# ## The step
#
# Two lines differ from a step without SAM. `nnx_value_fn` gets the arguments of
# the loss *before* the unperturbed pass, because that pass changes the model
# and the random numbers. `update` gets the function.


# %%
@nnx.jit
def train_step(model, optimizer, rngs, x, y):
  value_fn = nnx_value_fn(model, loss_fn, rngs, x, y)  # new
  loss, grads = nnx.value_and_grad(loss_fn)(model, rngs, x, y)
  optimizer.update(model, grads, value_fn=value_fn)  # changed
  return loss


@nnx.jit
def test_accuracy(model):
  model.eval()
  accuracy = jnp.mean(jnp.argmax(model(x_test), axis=-1) == y_test)
  model.train()
  return accuracy


def make(method):
  """Returns a new model, its optimizer and the random numbers of dropout."""
  model = Network(nnx.Rngs(0))
  base = optax.sgd(0.05, momentum=0.9)
  optimizer = nnx.Optimizer(model, optax.chain(method, base), wrt=nnx.Param)
  return model, optimizer, nnx.Rngs(1)


# %% [markdown]
# ## The running statistics after one step
#
# Here is the check that the second pass leaves no trace. One step of SAM is
# compared with a single pass of the network: the running statistics must be
# the same.

# %%
model, optimizer, rngs = make(optax_sam.sam(0.1))
reference, _, reference_rngs = make(optax_sam.sam(0.1))
x, y = x_train[rows[0, 0]], noisy_labels[rows[0, 0]]
train_step(model, optimizer, rngs, x, y)
loss_fn(reference, reference_rngs, x, y)

for name in ('norm_1', 'norm_2'):
  found, wanted = getattr(model, name), getattr(reference, name)
  np.testing.assert_allclose(found.mean[...], wanted.mean[...], atol=1e-6)
  np.testing.assert_allclose(found.var[...], wanted.var[...], atol=1e-6)
  print(f'{name}: the statistics are those of the unperturbed pass')

# %% [markdown]
# ## Training
#
# `mask=optax_sam.norm_layers_only` perturbs only the scales and biases of batch
# norm (SAM-ON), which are few parameters. The radius is the length of the
# perturbation, so it must be tuned separately.


# %%
def train(method):
  """Trains once; returns the model, and logs by epoch."""
  model, optimizer, rngs = make(method)
  losses, accuracies = [], []
  for epoch in rows:
    of_steps = [
      train_step(model, optimizer, rngs, x_train[batch], noisy_labels[batch])
      for batch in epoch
    ]
    losses.append(jnp.mean(jnp.stack(of_steps)))
    accuracies.append(test_accuracy(model))
  return model, np.array(losses), np.array(accuracies)


only_norm = optax_sam.sam(0.2, mask=optax_sam.norm_layers_only)
params = nnx.as_pure(nnx.state(model, nnx.Param))
selected = optax_sam.norm_layers_only(params)
perturbed = sum(
  leaf.size * kept
  for leaf, kept in zip(
    jax.tree.leaves(params), jax.tree.leaves(selected), strict=True
  )
)
print(f'SAM-ON perturbs {perturbed} of {optax.tree.size(params)} parameters')
runs = {
  'SGD': train(optax.identity()),
  'SAM': train(optax_sam.sam(0.1)),
  'SAM-ON': train(only_norm),
}
for name, (_, losses, accuracies) in runs.items():
  print(
    f'{name:6} training loss {losses[-1]:.3f}, test accuracy '
    f'{accuracies[-1]:.3f} (best {accuracies.max():.3f})'
  )

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3))
epochs = np.arange(1, EPOCHS + 1)
for name, (_, losses, accuracies) in runs.items():
  left.plot(epochs, accuracies, color=COLORS[name], label=name)
  right.plot(epochs, losses, color=COLORS[name], label=name)
left.set(title='Test accuracy, true labels', xlabel='epoch')
right.set(title='Training loss, noisy labels', xlabel='epoch')
for axis in (left, right):
  axis.set_xticks(range(0, EPOCHS + 1, 4))
right.legend()
plt.show()

# %% [markdown]
# The loss is that at the unperturbed weights. A higher training loss is
# expected: the network fits fewer wrong labels. This is one seed with untuned
# radii, so it is not a ranking.
#
# ## Which layers does SAM perturb?
#
# SAM's perturbation is the gradient, scaled to length `rho`. The plot shows how
# its squared length is distributed over the layers, at the end of training on
# the first batch of the last epoch.


# %%
@nnx.jit
def by_layer(model):
  """Returns the fraction of the squared gradient norm of each layer."""
  batch = rows[-1, 0]
  model.eval()
  grads = nnx.grad(loss_fn)(model, None, x_train[batch], noisy_labels[batch])
  model.train()
  squares = {
    name: optax.tree.norm(layer, squared=True)
    for name, layer in nnx.as_pure(grads).items()
  }
  total = sum(squares.values())
  return {name: square / total for name, square in squares.items()}


figure, axis = plt.subplots(figsize=(6, 2.6))
for number, (name, (model, _, _)) in enumerate(runs.items()):
  fractions = by_layer(model)
  places = np.arange(len(fractions)) + 0.27 * (number - 1)
  heights = [float(fraction) for fraction in fractions.values()]
  axis.bar(places, heights, 0.25, color=COLORS[name], label=name)
axis.set_xticks(np.arange(len(fractions)), fractions)
axis.set(title='Fraction of the squared gradient norm')
axis.legend()
plt.show()

# %% [markdown]
# ## Summary
#
# - Call `nnx_value_fn` before the unperturbed pass, with every NNX object that
#   the loss changes as an argument.
# - Running statistics and dropout need nothing else.
# - For logs write `optax_sam.metrics(nnx.as_pure(optimizer.opt_state))`.
