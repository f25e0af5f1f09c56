"""Fixtures for tests of several folders."""

import pytest

from optax_sam import sharpness


@pytest.fixture(scope='module')
def quick_eigenvalues():
  """Skips the eigenvalues, which take longer than a short run."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sharpness, 'top_eigenvalue', lambda *_, **__: 7.0)
    yield


@pytest.fixture(autouse=True)
def strict_promotion():
  """Flax and the schedules of Optax promote dtypes and ranks."""
