"""Fixtures for tests of several folders."""

import gc
import logging
import sys

import pytest

from optax_sam import sharpness


@pytest.fixture(scope='module')
def quick_eigenvalues():
  """Skips the eigenvalues, which take longer than a short run."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sharpness, 'top_eigenvalue', lambda *_, **__: 7.0)
    yield


@pytest.fixture
def muted():
  """Ignores what the command line ignores: logs, and errors of threads."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sys, 'unraisablehook', lambda _: None)
    logging.disable(logging.CRITICAL)
    yield
    gc.collect()
    logging.disable(logging.NOTSET)


@pytest.fixture(autouse=True)
def strict_promotion():
  """Flax and the schedules of Optax promote dtypes and ranks."""
