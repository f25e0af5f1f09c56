"""Single pieces at the edges of their arguments."""

import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from optax_sam import masks, objective, perturbations, selections


def test_several_ascent_steps_are_rounded_once():
  """In half precision too, the steps are added up in single precision."""
  gradients = [jnp.sin(k + jnp.arange(1.0, 65.0)) for k in range(4)]
  gradients = [gradient.astype(jnp.bfloat16) for gradient in gradients]

  def epsilon(dtype):
    cast = [gradient.astype(dtype) for gradient in gradients]
    rest = iter(cast[1:])
    piece = perturbations.ascend_repeatedly(0.3, len(cast))
    return piece.update(
      cast[0], piece.init(None), ascent_grad_fn=lambda _: next(rest)
    )[0]

  rounded = epsilon(jnp.bfloat16)
  assert rounded.dtype == jnp.bfloat16
  np.testing.assert_array_equal(
    rounded, epsilon(jnp.float32).astype(jnp.bfloat16)
  )


def test_no_more_entries_are_dropped_than_are_active():
  """An injected share above 1 can't be refused, but the mask keeps its size."""
  gradient = jnp.arange(1.0, 9.0)
  piece = perturbations.keep_dynamic(
    0.75,
    drop_rate=jnp.float32(2.5),
    refresh_every=1,
    total_steps=10,
    key=0,
  )
  state = piece.init(gradient)
  before = state.mask
  _, state = piece.update(gradient, state)
  assert int(masks.count(state.mask)) == 2
  assert not np.any(before & state.mask)


@pytest.mark.usefixtures('float64')
def test_share_that_moves_is_computed_in_the_precision_of_the_parameters():
  """Halfway, a quarter of 4 entries moves; single precision rounds it away."""
  gradient = jnp.arange(1.0, 9.0, dtype=jnp.float64)
  piece = perturbations.keep_dynamic(0.5, refresh_every=1, total_steps=2, key=0)
  state = piece.init(gradient)._replace(count=jnp.int32(1))
  _, after = piece.update(gradient, state)
  assert int(np.sum(state.mask & after.mask)) == 3


@pytest.mark.parametrize(
  ('n', 'm', 'message'),
  [
    (3, 2, 'm must be at least 3, got 2'),
    (0, 2, 'n must be at least 1, got 0'),
    (1, 2.0, 'm must be a Python integer, got 2.0'),
    ('2', 4, "n must be a Python integer, got '2'"),
  ],
)
def test_groups_that_cannot_be(n, m, message):
  with pytest.raises(ValueError, match=rf'^{message}'):
    perturbations.keep_n_of_m(n, m)


@pytest.mark.parametrize('lr_max', [1, 2])
def test_radius_that_follows_a_whole_number(lr_max):
  radius = optax_sam.rho_like_learning_rate(
    lambda _: 1, rho_max=0.75, rho_min=0.25, lr_max=lr_max, lr_min=1
  )
  assert float(radius(0)) == (0.75 if lr_max == 1 else 0.25)


def test_rises_of_half_precision_losses_are_not_rounded():
  batch = {
    'before': jnp.array([2.0**-8, 0.0], jnp.bfloat16),
    'after': jnp.array([100.5, 100.5], jnp.bfloat16),
  }

  def losses(w, batch):
    return jnp.where(w > 0, batch['after'], batch['before'])

  given = objective.Objective(per_example_value_fn=losses, batch=batch)
  selected = selections.sharpest(1).select(given, jnp.float32(0), (), 0)
  chosen = selected.descent(jnp.float32(1)).batch
  assert float(chosen['before'][0]) == 0
