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
# # Masks of sparse perturbations
#
# Sparse SAM perturbs only some of the weights. A mask selects them and is
# refreshed periodically:
#
# - `sparse_sam_fisher` selects the weights with the largest empirical Fisher
#   information, the sum of squared per-example gradients.
# - `sparse_sam_dynamic` starts with random weights. At every refresh it drops
#   those with the smallest gradients and draws the same number of new ones at
#   random.
#
# Neither is cheaper than SAM, because all gradients are computed in full. The
# question is which weights must be perturbed, so this notebook inspects the
# masks.

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
# ## Training with a mask per epoch
#
# The data are digits, and the network has three layers. One weight in five is
# perturbed. The mask is part of the optimizer state, a bool for every weight;
# `optax.tree.get` finds it.

# %%
EPOCHS, BATCH_SIZE, SPARSITY, RHO = 30, 50, 0.8, 0.1

digits, random = load_digits(), np.random.default_rng(0)
order = random.permutation(len(digits.target))[:1000]
images = jnp.float32(digits.data[order] / 16)
labels = jnp.asarray(digits.target[order])
rows = [random.permutation(1000) for _ in range(EPOCHS)]
rows = jnp.reshape(jnp.array(rows), (EPOCHS, -1, BATCH_SIZE))
steps_per_epoch = rows.shape[1]


def layer(inputs, outputs):
  kernel = random.normal(0, (2 / inputs) ** 0.5, (inputs, outputs))
  return {'kernel': jnp.float32(kernel), 'bias': jnp.zeros(outputs)}


start = {
  'layer 1': layer(64, 48),
  'layer 2': layer(48, 48),
  'layer 3': layer(48, 10),
}


def losses(params, batch):
  x, y = batch
  for name, layer in params.items():
    x = x @ layer['kernel'] + layer['bias']
    if name != 'layer 3':
      x = jax.nn.relu(x)
  return optax.softmax_cross_entropy_with_integer_labels(x, y)


@functools.partial(jax.jit, static_argnums=0)
def train(method):
  """Trains once; returns the parameters and the mask after every epoch."""
  tx = optax.chain(method, optax.sgd(0.05, momentum=0.9))

  def step(carry, rows):
    params, state = carry
    batch = images[rows], labels[rows]
    grads = jax.grad(lambda p: jnp.mean(losses(p, batch)))(params)
    updates, state = tx.update(
      grads, state, params, per_example_value_fn=losses, batch=batch
    )
    return (optax.apply_updates(params, updates), state), None

  def epoch(carry, rows):
    carry, _ = jax.lax.scan(step, carry, rows)
    return carry, optax.tree.get(carry[1], 'mask')

  (params, _), masks = jax.lax.scan(epoch, (start, tx.init(start)), rows)
  return params, masks


runs = {
  'Fisher': train(
    optax_sam.sparse_sam_fisher(
      RHO,
      sparsity=SPARSITY,
      num_samples=48,
      refresh_every=steps_per_epoch,
    )
  ),
  'dynamic': train(
    optax_sam.sparse_sam_dynamic(
      RHO,
      sparsity=SPARSITY,
      refresh_every=steps_per_epoch,
      total_steps=EPOCHS * steps_per_epoch,
      key=2,
    )
  ),
}
masks = {name: jax.device_get(found) for name, (_, found) in runs.items()}


# %% [markdown]
# The total number of selected weights is exact in every epoch.


# %%
def flat(masks):
  """Returns the masks as rows, one per epoch."""
  leaves = [leaf.reshape(EPOCHS, -1) for leaf in jax.tree.leaves(masks)]
  return np.concatenate(leaves, axis=1)


size = flat(masks['Fisher']).shape[1]
active = int((1 - SPARSITY) * size)
for name, found in masks.items():
  assert (flat(found).sum(axis=1) == active).all(), name
print(f'{active} of {size} weights are perturbed, in each of {EPOCHS} masks')

# %% [markdown]
# ## Selected weights by layer
#
# The masks determine the number of selected weights of each layer. The plot
# shows biases and kernels separately:

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
epochs = np.arange(1, EPOCHS + 1)
for axis, (name, found) in zip(axes, masks.items(), strict=True):
  for color, layer in zip(SEQUENCE((0.0, 0.45, 0.8)), start, strict=True):
    for part, style in (('kernel', '-'), ('bias', ':')):
      density = found[layer][part].reshape(EPOCHS, -1).mean(axis=1)
      axis.plot(epochs, density, style, color=color, label=f'{layer}, {part}')
  axis.axhline(1 - SPARSITY, color='0.7', linewidth=1, label='all')
  axis.set(title=name, xlabel='epoch', ylim=(0, 1))
axes[0].set_ylabel('fraction of weights selected')
handles, names = axes[0].get_legend_handles_labels()
figure.legend(handles, names, loc='outside right center')
plt.show()

# %% [markdown]
# ## The first layer as an image
#
# A pixel has 48 weights in the first layer. Its brightness shows the number of
# selected weights. Some pixels are blank in nearly all images, so their weights
# have almost no gradient.

# %%
shown = (1, 5, EPOCHS)
kept = {name: found['layer 1']['kernel'] for name, found in masks.items()}
kept = {
  name: found.mean(axis=2).reshape(-1, 8, 8) for name, found in kept.items()
}
most = max(found.max() for found in kept.values())
figure, axes = plt.subplot_mosaic(
  [[f'{name}, epoch {n}' for n in shown] + ['mean image'] for name in kept],
  figsize=(7.5, 3.6),
)
for name, found in kept.items():
  for epoch in shown:
    axis = axes[f'{name}, epoch {epoch}']
    drawn = axis.imshow(found[epoch - 1], vmin=0, vmax=most)
mean_image = np.mean(images, axis=0).reshape(8, 8)
axes['mean image'].imshow(mean_image, cmap='gray')
for title, axis in axes.items():
  axis.set_title(title, fontsize='medium')
  axis.set(xticks=[], yticks=[])
figure.colorbar(
  drawn, ax=list(axes.values()), label='fraction selected', shrink=0.8
)
plt.show()

# %% [markdown]
# ## Changes at a refresh
#
# Two random masks of this density would overlap in a fifth of their weights.
# The Fisher mask depends on the 48 images of a refresh. The dynamic mask
# changes at a rate that decays to 0 along a cosine, so its overlap is known in
# advance:
#
# ```
# moved = floor(kept * 0.25 * (1 + cos(pi * t / T)))
# ```

# %%
rate = 0.25 * (1 + np.cos(np.pi * (epochs - 1) / EPOCHS))
moved = np.floor(active * rate)
overlap = {}
for name, found in masks.items():
  entries = flat(found)
  overlap[name] = (entries[1:] & entries[:-1]).sum(axis=1)
difference = np.abs(active - overlap['dynamic'] - moved[1:])
assert difference.max() <= 1  # single precision may round to the next number
print(
  f'the dynamic mask moves {active - overlap["dynamic"][0]} weights at the '
  f'second refresh, {active - overlap["dynamic"][-1]} at the last'
)

figure, axis = plt.subplots(figsize=(5, 3))
for name, shared in overlap.items():
  axis.plot(epochs[1:], shared / active, color=COLORS[name], label=name)
axis.axhline(1 - SPARSITY, color='0.7', linestyle=':', label='by chance')
axis.set(title='Overlap with the mask before', xlabel='epoch', ylim=(0, 1))
axis.legend()
plt.show()

# %% [markdown]
# ## The norm of the masked perturbation
#
# The gradient is first scaled to length `rho` and then masked, so a sparse
# perturbation is shorter than that of SAM. The ratio shows whether the mask
# selects the weights with large gradients. The numbers are for the gradient
# over all training images at the end:


# %%
@jax.jit
def length_left(params, mask):
  """Returns the training loss, and the relative norm of its masked gradient."""
  value_fn = lambda p: jnp.mean(losses(p, (images, labels)))
  loss, grads = jax.value_and_grad(value_fn)(params)
  kept = jax.tree.map(lambda m, g: jnp.where(m, g, 0), mask, grads)
  return loss, optax.tree.norm(kept) / optax.tree.norm(grads)


print(f'length of a random mask: about {(1 - SPARSITY) ** 0.5:.2f} of rho')
for name, (params, found) in runs.items():
  loss, left = length_left(params, jax.tree.map(lambda m: m[-1], found))
  print(f'{name:8} {left:.2f} of rho; training loss {loss:.4f}')

# %% [markdown]
# To preserve the length `rho`, apply the mask first:
#
# ```python
# optax_sam.sharpness_aware(
#   optax.chain(
#     optax_sam.perturbations.keep_top_fisher(0.8, refresh_every=20),
#     optax_sam.perturbations.scale_to_radius(0.1),
#   )
# )
# ```
#
# To exclude whole layers, pass `mask=`, such as
# `mask=optax_sam.norm_layers_only`, to any method that perturbs.
