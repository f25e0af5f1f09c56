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
# # When AE-SAM computes the perturbed gradient
#
# SAM's perturbed gradient doubles the cost of a step. AE-SAM computes it only
# if the gradient is large compared to recent steps. With the squared gradient
# norm `x`, the step `t` and the total number of steps `T`:
#
# ```
# mean      = 0.9 * mean     + 0.1 * x
# variance  = 0.9 * variance + 0.1 * (x - mean)^2
# c         = 1 - 2 * t / T                         # from 1 to -1
# threshold = mean + c * sqrt(variance)
# ascend    = x >= threshold
# ```
#
# So at the start only unusually large gradients lead to an ascent step, and at
# the end all but unusually small ones. This notebook shows the rule in a
# training run.

# %%
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from scipy.stats import norm
from sklearn.datasets import load_digits
from style import COLORS

import optax_sam

# %% [markdown]
# ## A run that logs every step
#
# The data are digits with 30 % wrong labels, the network has one hidden layer.
# `optax_sam.metrics` reads the metrics of a method from the optimizer state,
# also inside a compiled loop: here it returns a row for every step.

# %%
EPOCHS, BATCH_SIZE = 40, 50

digits, random = load_digits(), np.random.default_rng(0)
order = random.permutation(len(digits.target))[:1000]
x = jnp.float32(digits.data[order] / 16)
shifts = random.integers(1, 10, 1000) * (random.random(1000) < 0.3)
y = jnp.asarray((digits.target[order] + shifts) % 10)
rows = [random.permutation(1000) for _ in range(EPOCHS)]
rows = jnp.reshape(jnp.array(rows), (-1, BATCH_SIZE))
steps_per_epoch = 1000 // BATCH_SIZE
total_steps = len(rows)


def layer(inputs, outputs):
  kernel = random.normal(0, (2 / inputs) ** 0.5, (inputs, outputs))
  return {'kernel': jnp.float32(kernel), 'bias': jnp.zeros(outputs)}


start = {'first': layer(64, 64), 'second': layer(64, 10)}


def loss(params, x, y):
  first, second = params['first'], params['second']
  hidden = jax.nn.relu(x @ first['kernel'] + first['bias'])
  logits = hidden @ second['kernel'] + second['bias']
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
  return jnp.mean(losses)


@functools.partial(jax.jit, static_argnums=0)
def train(method):
  """Trains once; returns the metrics of every step."""
  tx = optax.chain(method, optax.sgd(0.1, momentum=0.9))

  def step(carry, rows):
    params, state = carry
    value_fn = lambda p: loss(p, x[rows], y[rows])
    value, grads = jax.value_and_grad(value_fn)(params)
    updates, state = tx.update(grads, state, params, value_fn=value_fn)
    row = {**optax_sam.metrics(state), 'loss': value}
    return (optax.apply_updates(params, updates), state), row

  return jax.lax.scan(step, (start, tx.init(start)), rows)[1]


log = jax.device_get(train(optax_sam.ae_sam(0.1, total_steps=total_steps)))
print(*sorted(log), sep='\n')

# %% [markdown]
# ## The rule by hand
#
# The squared norms suffice to reproduce all decisions. Both moments start at 0,
# which causes a few extra ascent steps at first.

# %%
mean = variance = 0.0
means, deviations, thresholds = [], [], []
for t, squared_norm in enumerate(log['policy/squared_norm'].astype(float)):
  mean = 0.9 * mean + 0.1 * squared_norm
  variance = 0.9 * variance + 0.1 * (squared_norm - mean) ** 2
  c = 1 - 2 * t / total_steps
  means.append(mean)
  deviations.append(variance**0.5)
  thresholds.append(mean + c * variance**0.5)

means, deviations = np.array(means), np.array(deviations)
np.testing.assert_allclose(log['policy/mean'], means, rtol=1e-4)
np.testing.assert_allclose(log['policy/threshold'], thresholds, rtol=1e-3)
agree = np.mean(log['ascended'] == (log['policy/squared_norm'] >= thresholds))
assert agree > 0.995  # all but ties that rounding decides
print(f'{agree:.1%} of {total_steps} decisions are the same')

# %% [markdown]
# ## Gradient norms and threshold
#
# The plots show sixty steps early in training and sixty late. The band is one
# standard deviation around the mean. The threshold moves from its upper edge to
# its lower edge.

# %%
norms, ascended = log['policy/squared_norm'], log['ascended']
steps = np.arange(total_steps)
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
for axis, first in zip(axes, (40, total_steps - 100), strict=True):
  part = slice(first, first + 60)
  low, high = means - deviations, means + deviations
  axis.fill_between(steps[part], low[part], high[part], color='0.92')
  axis.plot(steps[part], means[part], ':', color='black', label='mean')
  axis.plot(
    steps[part],
    log['policy/threshold'][part],
    color=COLORS['threshold'],
    linewidth=1,
    label='threshold',
  )
  for chosen, label in (
    (ascended, 'perturbed gradient'),
    (~ascended, 'skipped'),
  ):
    inside = steps[part][chosen[part]]
    axis.plot(inside, norms[inside], 'o', color=COLORS[label], label=label)
  axis.set(title=f'Steps {first} to {first + 59}', xlabel='step')
  axis.set_ylim(bottom=0)
axes[0].set_ylabel('squared gradient norm')
handles, names = axes[0].get_legend_handles_labels()
figure.legend(handles, names, loc='outside right center')
plt.show()

# %% [markdown]
# ## Fraction of ascent steps
#
# If squared norms were normally distributed, the probability of an ascent step
# would be that of a normal variable above `c`. In practice their distribution
# has a long upper tail, so the fraction is usually smaller.

# %%
fraction = ascended.reshape(EPOCHS, -1).mean(axis=1)
expected = norm.sf(1 - 2 * steps / total_steps)
expected = expected.reshape(EPOCHS, -1).mean(axis=1)
for name, fractions in (('taken', fraction), ('normal', expected)):
  quarters = fractions.reshape(4, -1).mean(axis=1)
  print(
    f'{name:7}',
    *(f'{q:4.0%}' for q in quarters),
    f'  all {fractions.mean():.0%}',
  )

# %% [markdown]
# ## Comparison with two other policies
#
# SS-SAM decides at random in each step. LookSAM ascends periodically, and
# reuses the last direction in between. Neither depends on the gradient.

# %%
logs = {
  'AE-SAM': log,
  'SS-SAM': jax.device_get(
    train(optax_sam.ss_sam(0.1, probability=0.5, key=1))
  ),
  'LookSAM': jax.device_get(train(optax_sam.look_sam(0.1, period=5))),
}
assert logs['LookSAM']['ascended'].sum() == -(-total_steps // 5)

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), width_ratios=(3, 2))
epochs = np.arange(1, EPOCHS + 1)
for name, found in logs.items():
  fractions = found['ascended'].reshape(EPOCHS, -1).mean(axis=1)
  left.plot(epochs, fractions, color=COLORS[name], label=name)
left.plot(epochs, expected, ':', color='black', label='AE-SAM, normal law')
left.set(title='Steps with a perturbed gradient', xlabel='epoch', ylim=(0, 1.3))
left.set_yticks(np.linspace(0, 1, 6))
left.legend(ncols=2, loc='upper left')
middle = total_steps // 2
right.eventplot(
  [np.flatnonzero(f['ascended'][middle : middle + 50]) for f in logs.values()],
  lineoffsets=[2, 1, 0],
  linelengths=0.7,
  colors=[COLORS[name] for name in logs],
)
right.set(
  title='Perturbed gradients of 50 steps', xlabel=f'step after {middle}'
)
right.set_yticks([2, 1, 0], logs)
plt.show()

for name, found in logs.items():
  last = found['loss'][-steps_per_epoch:].mean()
  print(
    f'{name:8} {1 + found["ascended"].mean():.2f} gradients per step, '
    f'training loss of the last epoch {last:.3f}'
  )

# %% [markdown]
# ## Other thresholds
#
# `c` starts at `lambda_2` and ends at `lambda_1`. A policy depends only on
# gradients, so it can be replayed with the norms of this run: a scalar with the
# same squared norm replaces each gradient. In a real run the norms would differ
# slightly, because the steps would differ.


# %%
@functools.partial(jax.jit, static_argnums=(0, 1))
def replay(lambda_1, lambda_2):
  """Returns the fraction of ascent steps in every quarter."""
  policy = optax_sam.policies.on_sharp_gradients(
    total_steps, lambda_1=lambda_1, lambda_2=lambda_2
  )

  def decide(state, gradient):
    ascend, state = policy.decide(gradient, state)
    return state, ascend

  _, decisions = jax.lax.scan(
    decide, policy.init(jnp.zeros(())), jnp.sqrt(jnp.asarray(norms))
  )
  return decisions.reshape(4, -1).mean(axis=1)


print('lambda_1  lambda_2   fraction by quarter        all')
for lambda_1, lambda_2 in ((-1, 1), (0, 2), (0, 0), (1, -1)):
  quarters = np.asarray(replay(lambda_1, lambda_2))
  print(
    f'{lambda_1:8} {lambda_2:9}  ',
    *(f'{q:5.0%}' for q in quarters),
    f'{quarters.mean():10.0%}',
  )

# %% [markdown]
# `lambda_1=0, lambda_2=2` are the defaults of `ae_look_sam`. Swapping the two
# moves the ascent steps from the end of training to its start.
#
# If your log shows too many or too few ascent steps, change these two
# arguments. `help(optax_sam.policies.on_sharp_gradients)` lists the defaults
# that are unverified against the paper.
