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
# # Fine-tuning with a frozen base
#
# In fine-tuning, most parameters are often frozen, and small adapters are
# trained. A sharpness-aware method perturbs all parameters that it gets. Frozen
# parameters then use up a part of the radius, so the trained ones are perturbed
# less than `rho` promises.
#
# `optax_sam.trainable` turns the labels of `optax.partition` into a mask that
# excludes frozen parameters. This notebook pretrains a network on five digits,
# fine-tunes it to the other five, and shows what the mask changes.

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

# %% [markdown]
# ## The data
#
# The base network learns the digits 0 to 4. Fine-tuning has only 100 images of
# the digits 5 to 9, of which 20 % have a wrong label. The other images of these
# digits, with true labels, are for the test.

# %%
NOISE = 0.2

digits, random = load_digits(), np.random.default_rng(0)
order = random.permutation(len(digits.target))
images, labels = jnp.float32(digits.data[order] / 16), digits.target[order]
old, new = labels < 5, labels >= 5
pretraining = {'x': images[old], 'y': jnp.asarray(labels[old])}
x, y = images[new], labels[new] - 5
shifts = random.integers(1, 5, 100) * (random.random(100) < NOISE)
tuning = {'x': x[:100], 'y': jnp.asarray((y[:100] + shifts) % 5)}
test = {'x': x[100:], 'y': jnp.asarray(y[100:])}
for name, data in {
  'pretraining': pretraining,
  'fine-tuning': tuning,
  'test': test,
}.items():
  print(f'{name:11} {len(data["y"])} images')

# %% [markdown]
# ## Base, adapters and head
#
# The base has two hidden layers of 64 units. An adapter adds a product of two
# thin matrices, of rank 4, to the kernel of a layer (LoRA). Its second factor
# starts at 0, so fine-tuning starts from the base. The head is new.

# %%
RANK, WIDTHS = 4, ((64, 64), (64, 64))


def normal(key, inputs, outputs):
  scale = (2 / inputs) ** 0.5
  return scale * jax.random.normal(key, (inputs, outputs))


def make_base(key):
  keys = jax.random.split(key, len(WIDTHS))
  return [
    {'kernel': normal(key, *widths), 'bias': jnp.zeros(widths[1])}
    for key, widths in zip(keys, WIDTHS, strict=True)
  ]


def make_adapters(key):
  keys = jax.random.split(key, len(WIDTHS))
  return [
    {'down': normal(key, inputs, RANK), 'up': jnp.zeros((RANK, outputs))}
    for key, (inputs, outputs) in zip(keys, WIDTHS, strict=True)
  ]


def make_head(key):
  return {'kernel': normal(key, 64, 5), 'bias': jnp.zeros(5)}


def logits(params, x):
  for base, adapter in zip(params['base'], params['adapters'], strict=True):
    change = (x @ adapter['down']) @ adapter['up']
    x = jax.nn.relu(x @ base['kernel'] + base['bias'] + change)
  return x @ params['head']['kernel'] + params['head']['bias']


def loss_fn(params, batch):
  found = logits(params, batch['x'])
  losses = optax.softmax_cross_entropy_with_integer_labels(found, batch['y'])
  return jnp.mean(losses)


def accuracy(params, batch):
  found = jnp.argmax(logits(params, batch['x']), axis=-1)
  return jnp.mean(found == batch['y'])


@jax.jit
def make_params(key, base=None):
  keys = jax.random.split(key, 3)
  return {
    'base': base or make_base(keys[0]),
    'adapters': make_adapters(keys[1]),
    'head': make_head(keys[2]),
  }


# %% [markdown]
# ## The base
#
# All parameters but the adapters are trained here.


# %%
@functools.partial(jax.jit, static_argnums=0)
def train(tx, params, batches):
  """Trains once; returns the parameters, and accuracies every ten steps."""
  take_step = optax_sam.make_step(loss_fn, tx)

  def step(carry, batch):
    params, state, _ = take_step(*carry, batch)
    return (params, state), None

  def ten_steps(carry, batches):
    carry, _ = jax.lax.scan(step, carry, batches)
    return carry, accuracy(carry[0], test)

  (params, _), log = jax.lax.scan(ten_steps, (params, tx.init(params)), batches)
  return params, log


def draw(data, *shape):
  """Returns random batches of 25 examples, in groups of ten."""
  rows = random.integers(0, len(data['y']), (*shape, 10, 25))
  return jax.tree.map(lambda leaf: leaf[rows], data)


labels = {'base': 'trained', 'adapters': 'frozen', 'head': 'trained'}
rules = {'trained': optax.adam(2e-3), 'frozen': optax.set_to_zero()}
tx = optax.partition(rules, labels)
params = make_params(jax.random.key(0))
pretrained, _ = train(tx, params, draw(pretraining, 30))
print(f'accuracy on the old digits {accuracy(pretrained, pretraining):.3f}')

# %% [markdown]
# ## Three optimizers
#
# The labels say which parameters are frozen. The method is placed before
# `optax.partition`. The second optimizer has no mask.

# %%
RHO = 0.1

labels = {'base': 'frozen', 'adapters': 'trained', 'head': 'trained'}
base_optimizer = optax.partition(
  {'trained': optax.sgd(0.05, momentum=0.9), 'frozen': optax.set_to_zero()},
  labels,
)
mask = optax_sam.trainable(labels, frozen='frozen')
optimizers = {
  'SGD': base_optimizer,
  'SAM without mask': optax.chain(optax_sam.sam(RHO), base_optimizer),
  'SAM': optax.chain(optax_sam.sam(RHO, mask=mask), base_optimizer),
}
start = make_params(jax.random.key(1), pretrained['base'])
sizes = {name: optax.tree.size(part) for name, part in start.items()}
total = sum(sizes.values())
for name, size in sizes.items():
  print(f'{name:8} {size:6} parameters, {size / total:.0%}, {labels[name]}')

# %% [markdown]
# ## How the radius is spent
#
# To inspect a perturbation, record the point at which the method computes the
# perturbed gradient. The lengths are those of the first step.


# %%
def first_perturbation(mask):
  """Returns the perturbation of the first step of SAM."""
  seen, method = [], optax_sam.sam(RHO, mask=mask)
  grads = jax.grad(loss_fn)(start, tuning)

  def grad_fn(point):
    seen.append(jax.tree.map(jnp.subtract, point, start))
    return grads

  method.update(grads, method.init(start), start, grad_fn=grad_fn)
  return seen[0]


perturbations = {
  'SAM without mask': jax.jit(functools.partial(first_perturbation, None))(),
  'SAM': jax.jit(functools.partial(first_perturbation, mask))(),
}
looks = {
  'SGD': {'color': COLORS['SGD']},
  'SAM without mask': {'color': COLORS['SAM'], 'alpha': 0.4},
  'SAM': {'color': COLORS['SAM']},
}
figure, axis = plt.subplots(figsize=(6, 2.6))
for number, (name, epsilon) in enumerate(perturbations.items()):
  trained = epsilon['adapters'], epsilon['head']
  print(
    f'{name:16} length on trained parameters {optax.tree.norm(trained):.3f}'
  )
  lengths = [float(optax.tree.norm(epsilon[part])) for part in sizes]
  places = np.arange(len(lengths)) + 0.4 * number - 0.2
  axis.bar(places, lengths, 0.4, label=name, **looks[name])
axis.set_xticks(range(3), [f'{part}\n({labels[part]})' for part in sizes])
axis.set(title='Length of the perturbation')
axis.axhline(RHO, color='black', linestyle=':', label='rho')
axis.legend()
plt.show()

assert not any(leaf.any() for leaf in jax.tree.leaves(epsilon['base']))
np.testing.assert_allclose(optax.tree.norm(epsilon), RHO, rtol=1e-4)

# %% [markdown]
# The factor `down` isn't perturbed in the first step: its gradient is 0 while
# `up` is 0.
#
# ## Fine-tuning
#
# Each optimizer is run with 12 seeds at once. A seed determines the
# adapters, the head and the batches.

# %%
STEPS, SEEDS = 200, 12

keys = jax.random.split(jax.random.key(2), SEEDS)
starts = jax.vmap(make_params, (0, None))(keys, pretrained['base'])
batches = draw(tuning, SEEDS, STEPS // 10)


def fine_tune(tx, params, batches):
  params, log = train(tx, params, batches)
  return params, log, accuracy(params, tuning)


runs = {
  name: jax.jit(jax.vmap(functools.partial(fine_tune, tx)))(starts, batches)
  for name, tx in optimizers.items()
}
base_log = np.array(runs['SGD'][1][:, -1])
for name, (params, log, fitted) in runs.items():
  final = np.array(log[:, -1])
  difference = 100 * (final - base_log)
  error = difference.std(ddof=1) / SEEDS**0.5
  print(
    f'{name:16} test accuracy {final.mean():.3f} (lowest {final.min():.3f}), '
    f'noisy labels fitted {fitted.mean():.0%}'
  )
  if name != 'SGD':
    print(
      f'{"":16} {difference.mean():+.1f} points from SGD '
      f'(standard error {error:.1f})'
    )
  for found, wanted in zip(
    jax.tree.leaves(params['base']),
    jax.tree.leaves(pretrained['base']),
    strict=True,
  ):
    assert (found == wanted).all(), 'the base is frozen'

# %%
figure, axis = plt.subplots(figsize=(6, 3))
for name, (_, log, _) in runs.items():
  axis.plot(
    np.arange(10, STEPS + 1, 10), log.mean(axis=0), label=name, **looks[name]
  )
axis.set(title='Test accuracy, mean of 12 seeds', xlabel='step')
axis.legend(loc='lower right')
plt.show()

# %% [markdown]
# Both variants of SAM gain here, and twelve seeds do not show which is better.
# The mask makes `rho` the length of the perturbation of the trained parameters.
# Without it, that length is shorter by a factor that changes during training
# and depends on the base. A radius that was tuned with one base may then not
# fit another.
#
# ## The cost
#
# The mask also saves work. No perturbed gradient of frozen parameters is
# computed, and they have no state. The state of LookSAM, for example, is a
# direction of trained parameters only.

# %%
for name, chosen in {'without mask': None, 'with mask': mask}.items():
  method = optax_sam.look_sam(RHO, period=5, mask=chosen)
  size = optax.tree.size(jax.eval_shape(method.init, start))
  print(f'LookSAM {name:12} has {size} numbers in its state')

# %% [markdown]
# Two other ways to freeze parameters are on the page *Fine-tune a part of the
# parameters*: leave them out of the differentiated arguments, or leave their
# gradients `None`.
