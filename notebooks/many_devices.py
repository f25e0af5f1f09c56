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
# # Several devices
#
# If the batch is split over devices, SAM's perturbation has two definitions. It
# can use the gradient of the **global** batch, as on one device. Or each device
# uses the gradient of its **local** part, as in the SAM paper, which
# communicates hardly more than SGD.
#
# This notebook runs both on four devices and counts their communication. It
# needs no accelerator: a flag of XLA, set before JAX starts, splits one
# processor into four devices.

# %%
import os

flags = os.environ.get('XLA_FLAGS', '')
os.environ['XLA_FLAGS'] = f'{flags} --xla_force_host_platform_device_count=4'
os.environ['JAX_PLATFORMS'] = 'cpu'

import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from sklearn.datasets import load_digits
from style import COLORS

import optax_sam

mesh = Mesh(jax.devices()[:4], ('data',))
print(mesh)

# %% [markdown]
# ## The training
#
# A run takes thirty steps on digits with 64 images each. It returns the
# parameters after every step for the comparison.

# %%
STEPS, BATCH_SIZE, RHO = 30, 64, 0.2

digits, random = load_digits(), np.random.default_rng(0)
rows = random.integers(0, 1797, (STEPS, BATCH_SIZE))
batches = {
  'x': jnp.float32(digits.data[rows] / 16),
  'y': jnp.asarray(digits.target[rows]),
}


def layer(inputs, outputs):
  kernel = random.normal(0, (2 / inputs) ** 0.5, (inputs, outputs))
  return {'kernel': jnp.float32(kernel), 'bias': jnp.zeros(outputs)}


# Twelve classes, two of them unused: a number that four devices divide.
start = {'first': layer(64, 32), 'second': layer(32, 12)}


def losses(params, batch):
  first, second = params['first'], params['second']
  hidden = jax.nn.relu(batch['x'] @ first['kernel'] + first['bias'])
  logits = hidden @ second['kernel'] + second['bias']
  return optax.softmax_cross_entropy_with_integer_labels(logits, batch['y'])


def train(method, params, batches, axis_name=None):
  """Takes all steps; returns the parameters after each, and the last state."""
  tx = optax.chain(method, optax.sgd(0.1, momentum=0.9))

  def step(carry, batch):
    params, state = carry
    local = params
    if axis_name:  # see below
      local = jax.lax.pcast(params, axis_name, to='varying')
    grads = jax.grad(lambda p: jnp.mean(losses(p, batch)))(local)
    updates, state = tx.update(
      grads, state, params, per_example_value_fn=losses, batch=batch
    )
    params = optax.apply_updates(params, updates)
    return (params, state), params

  (_, state), history = jax.lax.scan(step, (params, tx.init(params)), batches)
  return history, state


class Run(NamedTuple):
  """The result of a run, and the HLO of its compiled function."""

  history: Any
  state: Any
  program: str


def run(function, *arrays):
  compiled = jax.jit(function).lower(*arrays).compile()
  return Run(*compiled(*arrays), compiled.as_text())


def under_jit(method, params=start, batches=batches):
  """Trains on arrays with any sharding."""
  return run(functools.partial(train, method), params, batches)


one_device = under_jit(optax_sam.sam(RHO))


def distance(found, reference=one_device):
  """Returns the relative distance of two runs after every step."""

  def flat(run):
    leaves = jax.tree.leaves(jax.device_get(run.history))
    return np.concatenate([x.reshape(STEPS, -1) for x in leaves], axis=1)

  apart = np.linalg.norm(flat(found) - flat(reference), axis=1)
  return apart / np.linalg.norm(flat(reference), axis=1)


# %% [markdown]
# ## Option 1: `jax.jit` and sharded arrays
#
# Only the sharding of the arrays changes. Gradients under `jit` are those of
# the global batch, and so is the perturbation. The results equal those of one
# device.


# %%
def place(tree, *spec):
  return jax.device_put(tree, NamedSharding(mesh, P(*spec)))


spread = place(batches, None, 'data')
data_parallel = under_jit(optax_sam.sam(RHO), place(start), spread)
assert distance(data_parallel).max() < 1e-4
print(f'apart from one device by {distance(data_parallel).max():.0e}')

# %% [markdown]
# Parameters and optimizer state can be sharded too (FSDP).

# %%
shards = jax.tree.map(lambda leaf: P(*[None] * (leaf.ndim - 1), 'data'), start)
sharded = jax.tree.map(lambda leaf, spec: place(leaf, *spec), start, shards)
fsdp = under_jit(optax_sam.sam(RHO), sharded, spread)
assert distance(fsdp).max() < 1e-4
momentum = optax.tree.get(fsdp.state, 'trace')
for name, leaf in {
  'parameters': sharded['first']['kernel'],
  'momentum': momentum['first']['kernel'],
}.items():
  held = leaf.addressable_shards[0].data.shape
  assert held == (64, 8), name
  print(f'{name}: {leaf.shape}, of which a device holds {held}')

# %% [markdown]
# ## Option 2: `jax.shard_map` and `axis_name`
#
# Here the function is that of one device with its local part of the batch, and
# the method averages over the devices. Pass local gradients and don't average
# them. Note that in `shard_map` the gradient with respect to replicated
# parameters is already a sum over the devices, so `train` uses `pcast`.


# %%
def under_shard_map(method):
  """Trains with a local part of every batch on each device."""
  program = jax.shard_map(
    functools.partial(train, method, axis_name='data'),
    mesh=mesh,
    in_specs=(P(), P(None, 'data')),
    out_specs=P(),
  )
  return run(program, place(start), spread)


synced = under_shard_map(optax_sam.sam(RHO, axis_name='data', sync_ascent=True))
local = under_shard_map(optax_sam.sam(RHO, axis_name='data'))
micro = under_jit(optax_sam.m_sam(RHO, micro_batch_size=BATCH_SIZE // 4))

assert distance(synced).max() < 1e-4
assert distance(local).max() > 1e-3
assert distance(local, micro).max() < 1e-4
print(f'synced ascent and one device: {distance(synced).max():.0e}')
print(f'local ascent and one device:  {distance(local).max():.0e}')
print(f'local ascent and m_sam:       {distance(local, micro).max():.0e}')

# %% [markdown]
# - **`sync_ascent=True`** also averages the ascent gradient: the results equal
#   those of one device.
# - **`sync_ascent=False`**, the default: each device perturbs with its local
#   gradient. This is m-sharpness, whose results depend on the number of
#   devices.
# - **`m_sam`** makes m-sharpness explicit, with the same results on any number
#   of devices: here those of four devices, computed on one.

# %%
curves = {
  'jit': distance(data_parallel),
  'jit, FSDP': distance(fsdp),
  'synced ascent': distance(synced),
  'local ascent': distance(local),
  'm_sam on one device': distance(micro),
}
# Global perturbations have one color, local ones another. Lines that lie on one
# another have different widths.
looks = (
  {'color': COLORS['SAM'], 'alpha': 0.3, 'linewidth': 6},
  {'color': COLORS['SAM'], 'alpha': 0.6, 'linewidth': 3},
  {'color': COLORS['SAM'], 'linewidth': 1},
  {'color': COLORS['m-SAM'], 'alpha': 0.5, 'linewidth': 6},
  {'color': COLORS['m-SAM'], 'linewidth': 1},
)
figure, axis = plt.subplots(figsize=(7, 3))
for (name, curve), look in zip(curves.items(), looks, strict=True):
  shown = np.maximum(curve, 1e-9)
  axis.plot(np.arange(1, STEPS + 1), shown, label=name, **look)
axis.set(xlabel='step', yscale='log', title='Distance from SAM on one device')
figure.legend(loc='outside right center')
plt.show()

# %% [markdown]
# ## Communication
#
# The HLO of a compiled function is readable. Every line with an all-reduce has
# the shapes of its arrays, with four bytes per number. The step occurs once, as
# the body of a loop.


# %%
def sent(run):
  """Returns the number of all-reduces in a step, and their bytes."""
  results = re.findall(r' = (.*?) all-reduce(?:-start)?\(', run.program)
  shapes = re.findall(r'f32\[([\d,]*)\]', ' '.join(results))
  sizes = [np.prod([int(n) for n in s.split(',') if n]) for s in shapes]
  return len(results), 4 * int(sum(sizes))


average = optax.stateless(lambda grads, _: jax.lax.pmean(grads, 'data'))
sgd = under_shard_map(optax.with_extra_args_support(average))
for name, found in {
  'SGD': sgd,
  'SAM, local ascent': local,
  'SAM, synced ascent': synced,
  'SAM, jit': data_parallel,
}.items():
  count, size = sent(found)
  print(f'{name:18} {count} all-reduces, {size} bytes')

_, gradient = sent(sgd)
assert gradient == 4 * optax.tree.size(start)
assert sent(local)[1] == gradient + 8
assert sent(synced)[1] == 2 * gradient + 8

# %% [markdown]
# Local ascent communicates as much as SGD plus 8 bytes of metrics. Synced
# ascent communicates one more gradient, and so does `jit`. The network
# determines which option is faster. The task determines which generalizes
# better; in the experiments of the SAM paper smaller parts did.
#
# ## Methods that decide
#
# A policy gets the averaged gradient, so all devices take the same branch.
# Otherwise an all-reduce in one branch would wait forever.

# %%
ae_sam = optax_sam.ae_sam(RHO, total_steps=STEPS, axis_name='data')
taken = optax_sam.metrics(under_shard_map(ae_sam).state)['second_gradients']
by_device = [int(shard.data) for shard in taken.addressable_shards]
assert len(by_device) == 4
assert len(set(by_device)) == 1
print(f'perturbed gradients in {STEPS} steps, by device: {by_device}')

# %% [markdown]
# `docs/conventions.md` lists the all-reduces of each method, and `docs/pods.md`
# the results of the TPU compiler.
