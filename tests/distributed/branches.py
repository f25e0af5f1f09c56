"""One branch on all devices, however much their gradients disagree.

A conditional that holds an all-reduce and is decided otherwise on another
device never ends. The flags of this process end it instead.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.contracts import comparisons
from tests.distributed import by_hand, problem, ways
from tests.distributed.by_hand import some_steps

DEVICES = 8
# Adaptive and random ones go all ways. The others have a conditional too; this
# way nothing is known at compile time about what is equal on all devices.
ALL_WAYS = ('ae_sam', 'ae_look_sam', 'ss_sam', 'esam')
CASES = [
  (name, way, sync)
  for name, row in problem.ROWS.items()
  for way in ways.OVER_AXIS
  for sync in (False, True)
  if name in ALL_WAYS
  or ((row.skips or row.refreshes) and way == 'shard_map_unchecked')
]


def adversarial_batches():
  """One device has a huge gradient, another one at each step."""
  batches = problem.batches()
  device = np.arange(problem.EXAMPLES) // (problem.EXAMPLES // DEVICES)
  step = np.arange(problem.STEPS)[:, None]
  # The one with the largest takes turns, and is sharper from step to step or
  # less sharp: no two devices see one history.
  exponent = 4.0 * np.cos(2.3 * device[None] * (step + 1))
  return {**batches, 'weight': jnp.asarray(10.0**exponent, jnp.float32)}


def careful_base():
  """Takes steps of one length, so that huge gradients do no harm."""
  return optax.chain(optax.normalize_by_update_norm(), optax.sgd(0.05))


@pytest.mark.parametrize(('name', 'way', 'sync'), CASES)
def test_all_devices_take_one_branch(name, way, sync):
  tx = problem.over_axis(name, sync=sync, base=careful_base())
  first, *others = ways.over_axis(tx, way, adversarial_batches())
  assert len(others) == DEVICES - 1
  for other in others:
    np.testing.assert_array_equal(other.ascended, first.ascended)
    comparisons.assert_equal(other, first)
  assert comparisons.all_finite(first)
  if problem.ROWS[name].skips:
    assert len(set(first.ascended.tolist())) == 2, first.ascended


@pytest.mark.parametrize(
  'name',
  [
    name
    for name, row in problem.METHODS.items()
    if row.skips or row.refreshes or name == 'friendly_sam'
  ],
)
def test_one_device_without_a_finite_gradient_is_noticed_by_all(name):
  targets = np.array(problem.batches()['y'])
  targets[4, 9] = np.nan
  batches = {**problem.batches(), 'y': jnp.asarray(targets)}
  base = optax.apply_if_finite(careful_base(), 3)
  tx = problem.over_axis(name, sync=False, base=base)
  first, *others = ways.over_axis(tx, 'shard_map_unchecked', batches)
  for other in others:
    comparisons.assert_equal(other, first)
  assert comparisons.all_finite(first)
  assert first.opt_state[1].total_notfinite == 1


def test_alone_the_devices_would_decide_otherwise():
  """The same decision, by what one device knows: no two steps in agreement."""
  w = by_hand.flat(problem.params())
  batches = jax.tree.map(np.asarray, adversarial_batches())
  moments = [(0.0, 0.0)] * DEVICES
  disagreements = 0
  for t in range(problem.STEPS):
    batch = jax.tree.map(lambda x, t=t: x[t].astype(np.float64), batches)
    step = by_hand.Step(w, batch, t, {}, devices=DEVICES, sync=False)
    sizes = np.sum(step.gradients() ** 2, axis=1)
    assert sizes.max() > 1e6 * sizes.min()
    found = [
      some_steps.moments_and_decision(x, past, 1 - 2 * t / 20)
      for x, past in zip(sizes, moments, strict=True)
    ]
    moments = [m for m, _ in found]
    disagreements += len({bool(ascends) for _, ascends in found}) > 1
  assert disagreements >= problem.STEPS // 2
