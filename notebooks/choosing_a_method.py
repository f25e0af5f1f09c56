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
# size of the perturbation. Here SGD is trained with several learning rates. SAM
# and ASAM are trained with the best of them and several radii. A validation set
# selects the values, and independent test images measure the gain. A guide to
# the other methods is at the end.
#
# The same procedure works for your network: a coarse grid with a factor of
# about two between the values, and more than one seed.

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
# The network has one hidden layer. The optimizer is SGD with momentum, with or
# without a method before it. The whole run is one function, so JAX can
# vectorize it over settings and seeds.

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


def train(optimizer, value, seed):
  """Trains once; returns the parameters and the training loss by epoch."""
  tx = optax.with_extra_args_support(optimizer(value))

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
# There are six values and four seeds. SGD must be tuned first: with a small
# learning rate it has no time to memorize the wrong labels, so SGD with an
# arbitrary learning rate would be a weak opponent. ASAM's radius is relative to
# each weight, so its values are larger.

# %%
VALUES = {
  'SGD': np.array([0.003, 0.006, 0.0125, 0.025, 0.05, 0.1]),
  'SAM': np.array([0.0125, 0.025, 0.05, 0.1, 0.2, 0.4]),
  'ASAM': np.array([0.0625, 0.125, 0.25, 0.5, 1, 2]),
}
SETTING = {'SGD': 'learning rate', 'SAM': 'rho', 'ASAM': 'rho'}


def sgd(learning_rate):
  return optax.sgd(learning_rate, momentum=0.9)


def over_values_and_seeds(name, optimizer):
  """Trains with all values of the setting and all seeds."""
  over_seeds = jax.vmap(functools.partial(train, optimizer), (None, 0))
  return jax.jit(jax.vmap(over_seeds, (0, None)))(VALUES[name], SEEDS)


@functools.partial(jax.jit, static_argnums=0)
def accuracies(name, params):
  """Returns accuracies of parameters that were trained together."""
  x, y = {'validation': validation, 'test': test}[name]
  found = jax.vmap(jax.vmap(lambda p: jnp.argmax(logits(p, x), axis=-1)))(
    params
  )
  return jnp.mean(found == y, axis=-1)


def best(name):
  """Returns the position of the value with the best validation accuracy."""
  return accuracies('validation', runs[name][0]).mean(axis=1).argmax()


runs = {'SGD': over_values_and_seeds('SGD', sgd)}
base = sgd(VALUES['SGD'][best('SGD')])
for name, method in {'SAM': optax_sam.sam, 'ASAM': optax_sam.asam}.items():
  runs[name] = over_values_and_seeds(
    name, lambda rho, method=method: optax.chain(method(rho), base)
  )

# %% [markdown]
# The line is the mean over the seeds; the band is the range from the lowest to
# the highest. If accuracy drops after the best value, try values in between. If
# the best value is the first or the last one, extend the grid.

# %%
figure, axes = plt.subplots(1, 3, figsize=(9, 3), sharey=True)
for axis, (name, (params, _)) in zip(axes, runs.items(), strict=True):
  found = accuracies('validation', params)
  places = np.arange(len(VALUES[name]))
  axis.fill_between(
    places, found.min(axis=1), found.max(axis=1), color=COLORS[name], alpha=0.2
  )
  axis.plot(places, found.mean(axis=1), color=COLORS[name], marker='o')
  axis.axvline(best(name), color='black', linestyle=':', label='chosen')
  axis.set_xticks(places, [f'{x:.2g}'.lstrip('0') for x in VALUES[name]])
  axis.set(title=name, xlabel=SETTING[name])
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
figure, axes = plt.subplots(1, 3, figsize=(9, 3), sharey=True)
for axis, (name, (_, loss)) in zip(axes, runs.items(), strict=True):
  for value, curve, color in zip(
    VALUES[name], loss.mean(axis=1), colors, strict=True
  ):
    axis.plot(np.arange(1, EPOCHS + 1), curve, color=color, label=f'{value:g}')
  axis.set(title=f'{name}, mean of the seeds', xlabel='epoch')
  axis.legend(title=SETTING[name], ncols=2, fontsize=7)
axes[0].set_ylabel('training loss')
plt.show()

# %% [markdown]
# ## The gain on test images
#
# The validation accuracy of the best value is biased by the selection, so the
# test images measure the gain over SGD with its best learning rate. Runs with
# the same seed start from the same weights and see the same batches, so the
# differences are paired.

# %%
found = {
  name: np.array(accuracies('test', params)[best(name)])
  for name, (params, _) in runs.items()
}
for name, scores in found.items():
  difference = 100 * (scores - found['SGD'])
  error = difference.std(ddof=1) / len(difference) ** 0.5
  print(
    f'{name:4} {SETTING[name]}={VALUES[name][best(name)]:<6g} test accuracy '
    f'{scores.mean():.3f}, difference to SGD {difference.mean():+.1f} points '
    f'(standard error {error:.1f})'
  )

# %% [markdown]
# Four seeds and one split are enough to find a radius, but not to rank two
# methods with overlapping results. `optax-sam compare` reports confidence
# intervals, and with `--tune` it searches radius and learning rate together.
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
# `docs/learn/how_to_choose.md` has the method with the largest mean gain in our
# runs for each cost. Besides the cost:
#
# - **Each step must take the same time:** all but methods that skip, such as
#   `ae_sam` and `look_sam`.
# - **Some labels are wrong:** not `k_sam`. It trains on the examples with the
#   largest losses, and many of these are mislabelled.
# - **Layers of very different scale, no normalization:** `asam`. Its radius has
#   other units and must be tuned separately.
#
# No method is better in general. Tune every method that you compare, SGD
# included. Compare at equal time if time is limited. Stay with SGD if the
# difference is within the seed-to-seed variance.
