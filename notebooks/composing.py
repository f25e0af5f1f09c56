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
# # Compose your own method
#
# Every method of this library consists of four components:
#
# | component | question |
# |---|---|
# | perturbation | which perturbation follows from a gradient? |
# | policy | does this step compute the perturbed gradient? |
# | combination rule (`descent`) | how are both gradients combined? |
# | batch selection (`selection`) | over which examples are they taken? |
#
# `optax_sam.sharpness_aware` combines the four. This notebook defines a new
# perturbation and a new policy, each in a few lines, and tests them.

# %%
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits
from style import COLORS

import optax_sam
from optax_sam import descents, perturbations, policies, selections

# %% [markdown]
# ## A perturbation
#
# A perturbation is an ordinary gradient transformation from the ascent gradient
# to the perturbation. So you can combine perturbations, and Optax's
# transformations, with `optax.chain`.
#
# SAM perturbs along the gradient, so weights with large gradients move most.
# The direction `sign(g) * abs(g)^q` is that of SAM for `q = 1`, and moves all
# weights equally for `q = 0`. `scale_to_radius` then sets the length.


# %%
def to_power(q):
  """Raises every entry to a power and keeps its sign."""

  def power(g):
    return jnp.sign(g) * jnp.abs(g) ** q

  return optax.stateless(lambda updates, _: jax.tree.map(power, updates))


def power_sam(rho, q, **choices):
  """SAM along the power of the gradient."""
  perturbation = optax.chain(to_power(q), perturbations.scale_to_radius(rho))
  return optax_sam.sharpness_aware(perturbation, **choices)


# %% [markdown]
# To inspect a perturbation, pass a custom `grad_fn`. It is called at the
# perturbed weights.


# %%
def perturb(method, state, params, grads):
  """Returns the perturbation of one step and the next state."""
  seen = []

  def grad_fn(point):
    seen.append(jax.tree.map(jnp.subtract, point, params))
    return grads

  _, state = method.update(grads, state, params, grad_fn=grad_fn)
  return seen[0], state


params = {'kernel': jnp.zeros((2, 2)), 'bias': jnp.zeros(2)}
grads = {
  'kernel': jnp.array([[3.0, -0.1], [0.5, 1.0]]),
  'bias': jnp.array([0.2, -2.0]),
}
for q in (0.0, 0.5, 1.0):
  method = power_sam(0.1, q)
  epsilon, _ = perturb(method, method.init(params), params, grads)
  print(f'q={q}', np.round(epsilon['kernel'], 3).ravel())
  np.testing.assert_allclose(optax.tree.norm(epsilon), 0.1, rtol=1e-5)

# %% [markdown]
# ## A policy
#
# A policy is a pair of functions: `init(params)` returns its state, and
# `decide(grads, state)` returns whether the step computes the perturbed
# gradient, and the next state. On several devices it gets the averaged
# gradient, so all devices decide the same.
#
# AE-SAM ascends in steps with large gradients, but their number depends on the
# training. This policy ascends in a fixed fraction of steps: the threshold
# rises after each ascent step and falls otherwise.


# %%
class AtFractionState(NamedTuple):
  """State of `at_fraction`.

  Attributes:
    log_norm: logarithm of the last gradient's norm.
    threshold: threshold for the logarithm of the norm.
  """

  log_norm: jax.Array
  threshold: jax.Array


def at_fraction(fraction, rate=0.05):
  """Ascends in a fraction of the steps, those with the largest gradients."""

  def init(params):
    del params
    return AtFractionState(jnp.zeros(()), jnp.zeros(()))

  def decide(grads, state):
    log_norm = jnp.log(optax.tree.norm(grads))
    ascend = log_norm >= state.threshold
    threshold = state.threshold + rate * (ascend - fraction)
    return ascend, AtFractionState(log_norm, threshold)

  return policies.Policy(init, decide)


# %% [markdown]
# (A policy for production must not change its state if a gradient is not
# finite, like those of the library.)
#
# ## Training with them
#
# The data are digits with 30 % wrong labels. One step serves all compositions
# below. `optax_sam.metrics` finds the fields of the new state automatically.

# %%
EPOCHS, BATCH_SIZE, RHO = 30, 50, 0.1

digits, random = load_digits(), np.random.default_rng(0)
order = random.permutation(len(digits.target))
images, labels = jnp.float32(digits.data[order] / 16), digits.target[order]
shifts = random.integers(1, 10, 600) * (random.random(600) < 0.3)
noisy_labels = jnp.asarray((labels[:600] + shifts) % 10)
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


def losses(params, batch):
  x, y = batch
  found = logits(params, x)
  return optax.softmax_cross_entropy_with_integer_labels(found, y)


@functools.partial(jax.jit, static_argnums=0)
def train(method):
  """Trains once; returns the parameters and the metrics of every step."""
  tx = optax.chain(method, optax.sgd(0.1, momentum=0.9))

  def step(carry, rows):
    params, state = carry
    batch = images[rows], noisy_labels[rows]
    grads = jax.grad(lambda p: jnp.mean(losses(p, batch)))(params)
    updates, state = tx.update(
      grads, state, params, per_example_value_fn=losses, batch=batch
    )
    carry = optax.apply_updates(params, updates), state
    return carry, optax_sam.metrics(state)

  (params, _), log = jax.lax.scan(step, (start, tx.init(start)), rows)
  return params, log


@jax.jit
def test_accuracy(params):
  found = jnp.argmax(logits(params, images[600:]), axis=-1)
  return jnp.mean(found == labels[600:])


# %% [markdown]
# ## Test 1: an identity
#
# Most new components equal a known one at some setting. That gives the simplest
# test. Here a training must equal that of SAM: with the first power of the
# gradient, an ascent step in every step, and no part of the unperturbed
# gradient.

# %%
sam, _ = train(optax_sam.sam(RHO))
same, _ = train(
  power_sam(RHO, 1.0, policy=policies.every(1), descent=descents.mix(1.0))
)
apart = optax.tree.norm(optax.tree.sub(same, sam))
assert apart < 1e-3 * optax.tree.norm(sam)
print(f'it ends at a distance of {apart:.0e} from SAM')

# %% [markdown]
# The policy has an invariant too: over a run the threshold rises by `rate`
# times the number of excess ascent steps. While the size of gradients is stable
# the threshold is bounded, so the fraction converges to the requested one.

# %%
params, log = jax.device_get(
  train(power_sam(RHO, 0.5, policy=at_fraction(0.3)))
)
taken, threshold = log['ascended'], log['policy/threshold']
moved = 0.05 * (taken.sum() - 0.3 * len(taken))
np.testing.assert_allclose(threshold[-1], moved, atol=1e-3)
print(f'{taken.mean():.1%} of the steps took an ascent step')

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), width_ratios=(3, 2))
steps, log_norm = np.arange(len(taken)), log['policy/log_norm']
for chosen, label in ((taken, 'perturbed gradient'), (~taken, 'skipped')):
  left.plot(
    steps[chosen],
    log_norm[chosen],
    'o',
    color=COLORS[label],
    markersize=2,
    label=label,
  )
left.plot(
  steps, threshold, color=COLORS['threshold'], linewidth=1, label='threshold'
)
left.set(title='Logarithm of the gradient norm', xlabel='step')
left.set_ylim(top=left.get_ylim()[1] + 0.2)
left.legend(ncols=3, loc='upper center')
right.bar(
  np.arange(1, EPOCHS + 1),
  taken.reshape(EPOCHS, -1).mean(axis=1),
  color=COLORS['perturbed gradient'],
)
right.axhline(0.3, color='black', linewidth=1)
right.set(title='Steps with a perturbed gradient', xlabel='epoch', ylim=(0, 1))
plt.show()

# %% [markdown]
# ## Schedules and masks
#
# `rho` may be a schedule, and `mask` selects the leaves to perturb. Masked
# leaves are not included in the norm; they are trained as usual. The example
# has a radius proportional to the learning rate, only on kernels:


# %%
def kernels(params):
  """Selects leaves with at least two axes."""
  return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


rate = optax.warmup_cosine_decay_schedule(0.0, 0.1, 5, 30)
radius = optax_sam.rho_like_learning_rate(
  rate, rho_max=0.2, rho_min=0.05, lr_max=0.1, lr_min=0.0
)
method = power_sam(radius, 0.5, mask=kernels)
params = {'kernel': jnp.zeros((2, 2)), 'bias': jnp.zeros(2)}
state, lengths = method.init(params), []
for _ in range(30):
  epsilon, state = perturb(method, state, params, grads)
  assert not epsilon['bias'].any()
  lengths.append(float(optax.tree.norm(epsilon)))
wanted = [float(radius(t)) for t in range(30)]
np.testing.assert_allclose(lengths, wanted, rtol=1e-5)

figure, axis = plt.subplots(figsize=(5, 2.8))
axis.plot(lengths, 'o', color=COLORS['SAM'], label='length of the perturbation')
axis.plot(wanted, color=COLORS['SAM'], alpha=0.4, label='schedule of rho')
axis.plot(
  [float(rate(t)) for t in range(30)],
  ':',
  color=COLORS['SGD'],
  label='learning rate',
)
axis.set(xlabel='step', ylim=(0, None))
axis.legend()
plt.show()

# %% [markdown]
# ## All four components
#
# This method applies the new perturbation to an average of past gradients
# (`optax.ema`) of half of the examples, in a third of the steps, and reuses the
# direction in between like LookSAM. It only shows that the components combine
# in one expression; one seed is no evidence that the method is good.

# %%
method = optax_sam.sharpness_aware(
  optax.chain(
    optax.ema(0.9), to_power(0.5), perturbations.scale_to_radius(RHO)
  ),
  policy=policies.after(60, at_fraction(1 / 3)),
  descent=descents.reuse_orthogonal(0.1),
  selection=selections.random_subset(0.5, key=3),
  mask=kernels,
)
params, log = train(method)
assert not log['ascended'][:60].any()
for name, found in {'SAM': sam, 'composed': params}.items():
  print(f'{name:8} test accuracy {test_accuracy(found):.3f}')
fraction = log['ascended'].mean()
print(f'{fraction:.0%} of the steps took an ascent step')

# %% [markdown]
# ## Next steps
#
# A method for production must also support several devices, half precision and
# non-finite gradients. `help(optax_sam.sharpness_aware)` describes the
# contract, and `CONTRIBUTING.md` the steps to add a method.
