"""Strictness for the library's own tests, and shared settings."""

import jax
import pytest


@pytest.fixture(autouse=True)
def strict_promotion(request):
  """No implicit promotion of dtypes or ranks, unless a module opts out."""
  if not getattr(request.module, 'STRICT', True):
    yield
    return
  with jax.numpy_dtype_promotion('strict'), jax.numpy_rank_promotion('raise'):
    yield


@pytest.fixture
def float64():
  """Double precision for the duration of a test."""
  with jax.enable_x64(True):
    yield
