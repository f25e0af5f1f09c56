# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Looking around two solutions
#
# SAM is said to find flatter minima. What does that look like? Here one network
# is trained with SGD and once more with SAM, and the loss around both solutions
# is drawn and measured.
#
# Pictures of a space with thousands of dimensions show very little of it, and a
# flatter minimum is not by itself a better model. So look at the figures too,
# and at the accuracy first.

# %%
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import optax_sam
from optax_sam import landscape, sharpness

# %% [markdown]
# ## Two solutions
#
# Digits with three wrong training labels in ten, a network with one hidden
# layer. Both runs start at the same weights and see the same batches.

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
# A random direction, scaled so that each filter (here: all weights of one unit)
# is as long as the weights at the solution. Without that a network with larger
# weights would look flatter, though it computes the same. One key gives both
# solutions the same Gaussian, so the curves can be compared.
#
# Three keys, because one direction says little.

# %%
figure, axes = plt.subplots(
  1, 3, figsize=(9, 2.8), sharey=True, layout='constrained'
)
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
# The first two of these directions at a time, at the same levels for both: how
# far the loss has risen above that of the solution. (`landscape.plot_plane`
# draws a plane by itself.)

# %%
levels = (0.25, 0.5, 1, 2, 3, 4, 5)
figure, axes = plt.subplots(
  1, 2, figsize=(8, 3.7), sharey=True, layout='constrained'
)
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
# ## From one to the other
#
# The straight path between the solutions. A barrier on it would say that they
# lie in different valleys, as far as one can see along this line. The loss is
# that of the training data, with their wrong labels, the error that of the test
# images.

# %%
ends = solutions['SGD'], solutions['SAM']
on_path = landscape.path(loss, *ends, beyond=0.25, points=31, args=(training,))
errors = landscape.path(error, *ends, beyond=0.25, points=31, args=(test,))
exact = landscape.path(loss, *ends, points=2, args=(training,)).losses
np.testing.assert_allclose(exact, [loss(p, training) for p in ends], rtol=1e-3)

figure, (left, right) = plt.subplots(
  1, 2, figsize=(9, 2.8), layout='constrained'
)
left.plot(*on_path)
left.set(title='Training loss')
right.plot(*errors)
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
# - **SAM sharpness**: how far the loss rises at most within a ball, here after
#   20 steps of ascent.
# - **Adaptive sharpness**: likewise, with each weight moved relative to its
#   size. Scaling a layer up and the next one down changes the first two, not
#   this.

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

figure, (left, right) = plt.subplots(
  1, 2, figsize=(9, 2.8), layout='constrained'
)
for name in solutions:
  left.plot(np.arange(1, 6), eigenvalues[name], 'o', label=name)
  right.plot(RADII, rises[name], marker='o', markersize=4, label=name)
left.set(title='Largest eigenvalues', xlabel='number', ylim=(0, None))
left.set_xticks(np.arange(1, 6))
right.set(title='SAM sharpness', xlabel='radius', ylim=(0, None))
left.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Before you believe it
#
# - **Same data, same radius.** All figures here are of the 600 training images
#   at once. The mean over batches of their own maxima is a larger number.
# - **Training loss.** Where one solution has fitted the wrong labels and the
#   other hasn't, they are at different depths, and the curvature of a loss near
#   0 is small for that reason alone. Compare with both numbers in view.
# - **One seed.** `optax-sam compare` measures over several. Of finished runs,
#   `optax-sam sharpness` draws such pictures.
