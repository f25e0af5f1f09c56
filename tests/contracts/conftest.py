"""The contracts compile the same programs many times over; here, once."""

import os

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache


# Of this package, as others look at what the compiler itself reports.
@pytest.fixture(autouse=True, scope='package')
def shared_programs(tmp_path_factory):
  """Keeps compiled programs in a directory of this run, for all workers.

  Functions are traced as ever, and tests count these traces; only XLA's part
  of the work is not repeated.
  """
  run = tmp_path_factory.getbasetemp()
  run = run.parent if 'PYTEST_XDIST_WORKER' in os.environ else run
  settings = {
    'jax_compilation_cache_dir': str(run / 'programs'),
    'jax_persistent_cache_min_compile_time_secs': 0,
    'jax_persistent_cache_min_entry_size_bytes': -1,
  }
  former = {name: getattr(jax.config, name) for name in settings}
  for name, value in settings.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()
  yield
  for name, value in former.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()
