import jax.numpy as jnp
import numpy as np
import pytest

from optax_sam import sharpness
from tests.sharpness import problems


def test_the_rise_of_the_mean_is_not_the_mean_of_rises():
  params, batch = problems.network()
  batches = problems.unequal_batches(batch)
  settings = {'rho': 0.3, 'steps': 5}

  def rise(**data):
    return sharpness.sam_sharpness(
      problems.network_loss, params, **settings, **data
    )

  assert rise(batches=batches) == pytest.approx(rise(args=(batch,)), rel=1e-4)
  alone = [rise(args=(one,)) for one in batches]
  rows = [len(one['labels']) for one in batches]
  apart = rise(batches=batches, per_batch=True)
  assert apart == pytest.approx(np.average(alone, weights=rows), rel=1e-4)
  assert apart > 1.02 * rise(batches=batches)


def test_a_loader_is_gone_through_as_often_as_needed():
  class Loader:
    def __iter__(self):
      yield from problems.unequal_batches(problems.network()[1])

  params, batch = problems.network()
  found, expected = (
    sharpness.sam_sharpness(problems.network_loss, params, 0.1, **data)
    for data in ({'batches': Loader()}, {'args': (batch,)})
  )
  assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
  ('batches', 'message'),
  [
    (iter([jnp.ones(3)]), r'list\(\.\.\.\)'),
    ([], 'at least one'),
    ([jnp.float32(1)], r'^batches must hold .* shapes \[\(\)\]'),
    (jnp.ones(3), r'batches=\[batch\]'),
    ([()], r'^batches must hold .* shapes \[\]'),
  ],
)
def test_bad_batches_are_named(batches, message):
  with pytest.raises(ValueError, match=message):
    sharpness.sam_sharpness(
      lambda x, b: jnp.sum(x) + jnp.sum(b), jnp.ones(2), 1.0, batches=batches
    )


def test_per_batch_needs_batches():
  with pytest.raises(ValueError, match='per_batch=True needs batches'):
    sharpness.sam_sharpness(jnp.sum, jnp.ones(2), 1.0, per_batch=True)
