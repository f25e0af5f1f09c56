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
# # The loss landscape of two solutions
#
# SAM is expected to find flatter minima. This notebook trains one network with
# SGD and with SAM, and plots and measures the loss around both solutions.
#
# Plots of a space with thousands of dimensions show very little of it, and a
# flatter minimum alone is not a better model. So compare accuracy first, then
# the numbers, then the plots.

# %%
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits
from style import COLORS

import optax_sam
from optax_sam import landscape, sharpness

# %% [markdown]
# ## Two solutions
#
# The data are digits with 30 % wrong training labels; the network has one
# hidden layer. Both runs start at the same weights and see the same batches.

# %%
EPOCHS, BATCH_SIZE, RHO = 60, 50, 0.2

digits, random = load_digits(), np.random.default_rng(0)
order = random.permutation(len(digits.target))
images, labels = jnp.float32(digits.data[order] / 16), digits.target[order]
shifts = random.integers(1, 10, 600) * (random.random(600) < 0.3)
training = images[:600], jnp.asarray((labels[:600] + shifts) % 10)
test = images[600:], jnp.asarray(labels[600:])
rows = [random.permutation(600) for _ in range(EPOCHS)]
rows = jnp.reshape(jnp.array(rows), (-1, BATCH_SIZE))


def layer(inputs, outputs):
  kernel = random.normal(0, (2 / inputs) ** 0.5, (inputs, outputs))
  return {'kernel': jnp.float32(kernel), 'bias': jnp.zeros(outputs)}


start = {'first': layer(64, 32), 'second': layer(32, 10)}


def logits(params, x):
  first, second = params['first'], params['second']
  hidden = jax.nn.relu(x @ first['kernel'] + first['bias'])
  return hidden @ second['kernel'] + second['bias']


@jax.jit
def loss(params, batch):
  x, y = batch
  found = logits(params, x)
  losses = optax.softmax_cross_entropy_with_integer_labels(found, y)
  return jnp.mean(losses)


@jax.jit
def error(params, batch):
  x, y = batch
  return jnp.mean(jnp.argmax(logits(params, x), axis=-1) != y)


@functools.partial(jax.jit, static_argnums=0)
def train(tx):
  def step(carry, rows):
    params, state = carry
    batch = jax.tree.map(lambda leaf: leaf[rows], training)
    value_fn = lambda p: loss(p, batch)
    updates, state = tx.update(
      jax.grad(value_fn)(params), state, params, value_fn=value_fn
    )
    return (optax.apply_updates(params, updates), state), None

  return jax.lax.scan(step, (start, tx.init(start)), rows)[0][0]


base = optax.with_extra_args_support(optax.sgd(0.1, momentum=0.9))
solutions = {
  'SGD': train(base),
  'SAM': train(optax.chain(optax_sam.sam(RHO), base)),
}
for name, params in solutions.items():
  print(
    f'{name} training loss {loss(params, training):.3f}, '
    f'test accuracy {1 - error(params, test):.3f}'
  )

# %% [markdown]
# ## Along a line
#
# A random direction is scaled so that each filter (here: all weights of one
# unit) has the norm of the weights of the solution. Otherwise a network with
# larger weights would look flatter even if it computes the same function. With
# the same key both solutions have the same Gaussian direction, so the curves
# are comparable.
#
# There are three keys, because a single direction says little.

# %%
figure, axes = plt.subplots(1, 3, figsize=(9, 2.8), sharey=True)
for seed, axis in enumerate(axes):
  lines = {}
  for name, params in solutions.items():
    direction = landscape.random_direction(params, jax.random.key(seed))
    lines[name] = landscape.line(
      loss, params, direction, points=31, args=(training,)
    )
    middle = lines[name].losses[15]
    np.testing.assert_allclose(middle, loss(params, training), rtol=1e-5)
  landscape.plot_lines(lines, axis)
  axis.set(title=f'Direction {seed + 1}', xlabel='distance')
  axis.label_outer()
  if seed:
    axis.get_legend().remove()
plt.show()

# %% [markdown]
# ## On a plane
#
# The contours show the rise of the loss above that of the solution, along the
# first two directions, with the same levels for both. (`landscape.plot_plane`
# plots a single plane.)

# %%
levels = (0.25, 0.5, 1, 2, 3, 4, 5)
figure, axes = plt.subplots(1, 2, figsize=(8, 3.7), sharey=True)
for axis, (name, params) in zip(axes, solutions.items(), strict=True):
  directions = tuple(
    landscape.random_direction(params, jax.random.key(seed)) for seed in (0, 1)
  )
  plane = landscape.plane(loss, params, directions, points=21, args=(training,))
  rise = plane.losses - loss(params, training)
  drawn = axis.contour(plane.positions, plane.positions, rise.T, levels=levels)
  axis.clabel(drawn, fontsize='small', fmt='%g')
  axis.plot(0, 0, '+', color='black')
  axis.set(title=name, xlabel='first direction', aspect='equal')
axes[0].set_ylabel('second direction')
plt.show()

# %% [markdown]
# ## The path between the solutions
#
# This is the straight path between the solutions. A barrier would indicate that
# they are in different valleys along this line. The loss is that of the
# training data, including wrong labels; the error is that of the test images.

# %%
ends = solutions['SGD'], solutions['SAM']
on_path = landscape.path(loss, *ends, beyond=0.25, points=31, args=(training,))
errors = landscape.path(error, *ends, beyond=0.25, points=31, args=(test,))
exact = landscape.path(loss, *ends, points=2, args=(training,)).losses
np.testing.assert_allclose(exact, [loss(p, training) for p in ends], rtol=1e-3)

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8))
left.plot(*on_path, color='black')
left.set(title='Training loss')
right.plot(*errors, color='black')
right.set(title='Test error')
for axis in (left, right):
  axis.set_xticks([0, 1], solutions)
  for place in (0, 1):
    axis.axvline(place, color='0.8', linewidth=1)
plt.show()
apart = optax.tree.norm(optax.tree.sub(*ends))
print(f'They are {apart:.1f} apart; the norms of the weights are')
print(
  ', '.join(f'{optax.tree.norm(p):.1f} ({n})' for n, p in solutions.items())
)

# %% [markdown]
# ## In numbers
#
# - **Top eigenvalues** of the Hessian: how strongly the loss curves in its
#   steepest directions.
# - **SAM sharpness**: the largest rise of the loss within a ball, here after 20
#   steps of gradient ascent.
# - **Adaptive sharpness**: the largest rise if each weight moves relative to
#   its size. Scaling a layer up and the next one down changes the first two
#   measures, but not this one.

# %%
RADII = (0.05, 0.1, 0.2, 0.4)
rises, eigenvalues = {}, {}
for name, params in solutions.items():
  rises[name] = [
    sharpness.sam_sharpness(loss, params, rho, steps=20, args=(training,))
    for rho in RADII
  ]
  eigenvalues[name] = sharpness.top_eigenvalues(
    loss, params, 5, args=(training,), tolerance=1e-2
  )
  adaptive = sharpness.adaptive_sharpness(loss, params, 0.05, args=(training,))
  print(
    f'{name} top eigenvalue {eigenvalues[name][0]:.2f}, '
    f'SAM sharpness at {RHO} {rises[name][2]:.3f}, adaptive {adaptive:.3f}'
  )

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8))
for name in solutions:
  left.plot(
    np.arange(1, 6), eigenvalues[name], 'o', color=COLORS[name], label=name
  )
  right.plot(RADII, rises[name], color=COLORS[name], marker='o', label=name)
left.set(title='Largest eigenvalues', xlabel='number', ylim=(0, None))
left.set_xticks(np.arange(1, 6))
right.set(title='SAM sharpness', xlabel='radius', ylim=(0, None))
left.legend()
plt.show()

# %% [markdown]
# ## Caveats
#
# - **Same data, same radius.** All numbers are for the 600 training images at
#   once. The mean of per-batch maxima would be larger.
# - **Training loss.** If only one solution has fitted the wrong labels, the
#   losses differ, and the curvature of a loss near 0 is small for that reason
#   alone. So compare training losses too.
# - **One seed.** `optax-sam compare` measures several seeds. `optax-sam
#   sharpness` makes such plots of finished runs.
