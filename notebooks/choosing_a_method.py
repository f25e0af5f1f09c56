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
# # Which method, and which radius?
#
# Every method has one hyperparameter that you must tune: the radius `rho`, the
# size of the perturbation. Here SAM and ASAM are trained with several radii, a
# validation set selects one for each, and independent test images measure the
# gain. A guide to the other methods is at the end.
#
# The same procedure works for your network: a coarse grid of radii with a
# factor of about two between them, and more than one seed.

# %%
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits
from style import COLORS, SEQUENCE

import optax_sam

# %% [markdown]
# ## The data
#
# The data are handwritten digits of 8 x 8 pixels. 30 % of the training and
# validation labels are wrong, because in practice wrong labels are in both. All
# test labels are true.

# %%
NOISE = 0.3

digits, random = load_digits(), np.random.default_rng(0)
order = random.permutation(len(digits.target))
images, labels = digits.data[order] / 16, digits.target[order]
wrong = random.random(len(labels)) < NOISE
shifts = random.integers(1, 10, len(labels))
noisy_labels = np.where(wrong, (labels + shifts) % 10, labels)


def part(first, last, labels):
  """Returns some of the images with labels."""
  return jnp.float32(images[first:last]), jnp.asarray(labels[first:last])


training = part(0, 600, noisy_labels)
validation = part(600, 1200, noisy_labels)
test = part(1200, None, labels)
print(f'{NOISE:.0%} of {len(training[0])} labels are wrong,')
print(f'so about {1 - NOISE:.0%} is all that validation can show')

# %% [markdown]
# ## One run
#
# The network has one hidden layer. The optimizer is SGD with momentum, with a
# method before it. The whole run is one function, so JAX can vectorize it over
# radii and seeds.

# %%
EPOCHS, BATCH_SIZE, SEEDS = 30, 50, np.arange(4)
rows = [[random.permutation(600) for _ in range(EPOCHS)] for _ in SEEDS]
rows = jnp.reshape(jnp.array(rows), (len(SEEDS), -1, BATCH_SIZE))


def layer(inputs, outputs):
  """Returns a layer of each of the seeds."""
  shape = len(SEEDS), inputs, outputs
  kernel = random.normal(0, (2 / inputs) ** 0.5, shape)
  bias = jnp.zeros((len(SEEDS), outputs))
  return {'kernel': jnp.float32(kernel), 'bias': bias}


starts = {'first': layer(64, 32), 'second': layer(32, 10)}


def logits(params, x):
  first, second = params['first'], params['second']
  hidden = jax.nn.relu(x @ first['kernel'] + first['bias'])
  return hidden @ second['kernel'] + second['bias']


def losses(params, batch):
  x, y = batch
  found = logits(params, x)
  return optax.softmax_cross_entropy_with_integer_labels(found, y)


def train(method, rho, seed):
  """Trains once; returns the parameters and the training loss by epoch."""
  tx = optax.chain(method(rho), optax.sgd(0.1, momentum=0.9))

  def step(carry, rows):
    params, state = carry
    batch = jax.tree.map(lambda x: x[rows], training)
    value_fn = lambda p: jnp.mean(losses(p, batch))
    loss, grads = jax.value_and_grad(value_fn)(params)
    updates, state = tx.update(grads, state, params, value_fn=value_fn)
    return (optax.apply_updates(params, updates), state), loss

  params = jax.tree.map(lambda leaf: leaf[seed], starts)
  (params, _), loss = jax.lax.scan(step, (params, tx.init(params)), rows[seed])
  return params, loss.reshape(EPOCHS, -1).mean(axis=1)


# %% [markdown]
# ## The sweep
#
# There are six radii and four seeds. The first radius is 0, which is plain SGD
# in the same compiled function. ASAM's radius is relative to each weight, so
# its values are larger.

# %%
RADII = {
  'SAM': np.array([0, 0.05, 0.1, 0.2, 0.4, 0.8]),
  'ASAM': np.array([0, 0.25, 0.5, 1, 2, 4]),
}
METHODS = {'SAM': optax_sam.sam, 'ASAM': optax_sam.asam}


def over_radii_and_seeds(method):
  """Trains a method at all its radii with all seeds."""
  over_seeds = jax.vmap(functools.partial(train, method), (None, 0))
  return jax.jit(jax.vmap(over_seeds, (0, None)))


@functools.partial(jax.jit, static_argnums=0)
def accuracies(name, params):
  """Returns accuracies of parameters that were trained together."""
  x, y = {'validation': validation, 'test': test}[name]
  found = jax.vmap(jax.vmap(lambda p: jnp.argmax(logits(p, x), axis=-1)))(
    params
  )
  return jnp.mean(found == y, axis=-1)


runs = {
  name: over_radii_and_seeds(method)(RADII[name], SEEDS)
  for name, method in METHODS.items()
}
validated = {
  name: np.array(accuracies('validation', params))
  for name, (params, _) in runs.items()
}
best = {name: found.mean(axis=1).argmax() for name, found in validated.items()}

# %% [markdown]
# The line is the mean over the seeds; the band is the range from the lowest to
# the highest. If accuracy drops after the best radius, try values in between,
# or take the smaller radius if its accuracy is within the band.

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True)
for axis, (name, found) in zip(axes, validated.items(), strict=True):
  places = np.arange(len(RADII[name]))
  axis.fill_between(
    places, found.min(axis=1), found.max(axis=1), color=COLORS[name], alpha=0.2
  )
  axis.plot(places, found.mean(axis=1), color=COLORS[name], marker='o')
  axis.axvline(best[name], color='black', linestyle=':', label='chosen')
  axis.set_xticks(places, [f'{rho:g}' for rho in RADII[name]])
  axis.set(title=name, xlabel='rho')
axes[0].set_ylabel('validation accuracy')
axes[0].legend(loc='lower left')
plt.show()

# %% [markdown]
# ## Signs of a radius that is too large
#
# The logged loss is that at the unperturbed weights. If it remains high, or
# falls much later than without the method, the radius is too large: the network
# underfits. With wrong labels, a loss near 0 is not good either: the network
# has memorized them.

# %%
colors = SEQUENCE(np.linspace(0, 0.9, 6))
figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True)
for axis, (name, (_, loss)) in zip(axes, runs.items(), strict=True):
  for rho, curve, color in zip(
    RADII[name], loss.mean(axis=1), colors, strict=True
  ):
    axis.plot(np.arange(1, EPOCHS + 1), curve, color=color, label=f'{rho:g}')
  axis.set(title=f'{name}, mean of the seeds', xlabel='epoch')
  axis.legend(title='rho', ncols=2)
axes[0].set_ylabel('training loss')
plt.show()

# %% [markdown]
# ## The gain on test images
#
# The validation accuracy of the best radius is biased by the selection, so the
# test images measure the gain. Runs with the same seed start from the same
# weights and see the same batches, so the differences are paired.

# %%
for name, (params, _) in runs.items():
  found = np.array(accuracies('test', params))
  difference = 100 * (found[best[name]] - found[0])
  rho = float(RADII[name][best[name]])
  error = difference.std(ddof=1) / len(difference) ** 0.5
  print(
    f'{name:4} rho={rho:<4g} test accuracy {found[best[name]].mean():.3f}, '
    f'SGD {found[0].mean():.3f}, difference {difference.mean():+.1f} points '
    f'(standard error {error:.1f})'
  )

# %% [markdown]
# Four seeds and one split are enough to find a radius, but not to rank two
# methods with overlapping results. `optax-sam compare` reports confidence
# intervals.
#
# ## Which method?
#
# A radius for SAM is a good start for methods that skip steps or select
# examples, because their perturbation is that of SAM. The cost of a method is
# its number of perturbed gradients, and its memory is its state. Both can be
# measured. LookSAM's fraction is 1/`period`; AE-SAM's depends on the training:


# %%
@functools.partial(jax.jit, static_argnums=0)
def fraction(method):
  """Trains once; returns the fraction of steps with a perturbed gradient."""

  def step(carry, rows):
    params, state = carry
    batch = jax.tree.map(lambda x: x[rows], training)
    value_fn = lambda p: jnp.mean(losses(p, batch))
    grads = jax.grad(value_fn)(params)
    updates, state = method.update(grads, state, params, value_fn=value_fn)
    return (optax.tree.add_scale(params, -0.1, updates), state), None

  params = jax.tree.map(lambda leaf: leaf[0], starts)
  carry, _ = jax.lax.scan(step, (params, method.init(params)), rows[0])
  return optax_sam.metrics(carry[1])['second_gradients'] / len(rows[0])


def kept(method):
  """Returns how large a state is, in units of the parameters."""
  params = jax.tree.map(lambda leaf: leaf[0], starts)
  state = jax.eval_shape(method.init, params)
  return optax.tree.size(state) // optax.tree.size(params)


ae_sam = optax_sam.ae_sam(0.1, total_steps=rows.shape[1])
look_sam = optax_sam.look_sam(0.1, period=5)
for name, method, second in (
  ('sam', optax_sam.sam(0.1), 1),
  ('friendly_sam', optax_sam.friendly_sam(0.1), 1),
  ('look_sam', look_sam, 1 / 5),
  ('ae_sam', ae_sam, float(fraction(ae_sam))),
):
  print(
    f'{name:12} {1 + second:.2f} gradients per step, '
    f'state {kept(method)} x the parameters'
  )

# %% [markdown]
# - **Two gradients per step are fine:** `friendly_sam`, whose state is an
#   average of gradients. `sam` is the reference and stateless.
# - **You want most of the gain for less:** `ae_sam`. Its number of perturbed
#   gradients depends on the training.
# - **Each step must take the same time:** `subset_sam`, whose ascent gradient
#   is over a part of the batch.
# - **One gradient per step:** `momentum_sam`. `k_sam` costs as little, but only
#   for correct labels. It trains on the examples with the largest losses; with
#   wrong labels, many of these are mislabelled.
# - **Layers of very different scale, no normalization:** `asam`. Its radius has
#   other units and must be tuned separately.
#
# None of these is better in general. Tune the radius of each method that you
# compare. Compare at equal time if time is limited. Stay with SGD if the
# difference is within the seed-to-seed variance.
