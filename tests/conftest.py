"""Strict promotion for the tests of the library, and shared settings."""

import shutil
import signal
import tempfile

import jax
import pytest

from tests import compiling

# Damaged checkpoints: reads that Orbax has cancelled.
_ABANDONED = (
  'Exception ignored in. <coroutine object _read_array'
  ':pytest.PytestUnraisableExceptionWarning'
)
# Tests that train in half precision on purpose.
_ROUNDED = 'params hold .*float.* rounds most of a small perturbation'


def pytest_configure(config):
  """Sets XLA's flags before this process compiles anything."""
  jax.config.update('jax_num_cpu_devices', 8)
  # A shell ignores Ctrl-C for what runs in its background; some tests send it.
  if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
  for warning in (
    f'{compiling.TORN}:UserWarning',
    f'{_ROUNDED}:UserWarning',
    _ABANDONED,
  ):
    config.addinivalue_line('filterwarnings', f'ignore:{warning}')
  if compiling.is_set_up():
    return
  compiling.compile_cheaply()
  directory = None
  if not hasattr(config, 'workerinput'):
    directory = tempfile.mkdtemp(prefix='optax-sam-programs-')
    config.add_cleanup(lambda: shutil.rmtree(directory, ignore_errors=True))
  compiling.share_programs(directory)


@pytest.fixture(autouse=True)
def strict_promotion(request):
  """Disables implicit promotion, unless a module sets `STRICT = False`."""
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
