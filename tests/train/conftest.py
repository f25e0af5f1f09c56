"""One compilation of each program for all tests of the trainer."""

import jax
import pytest


@pytest.fixture(scope='package', autouse=True)
def compilation_cache(tmp_path_factory):
  settings = {
    'jax_compilation_cache_dir': str(tmp_path_factory.mktemp('programs')),
    'jax_persistent_cache_min_compile_time_secs': 0,
    'jax_persistent_cache_min_entry_size_bytes': -1,
  }
  former = {name: getattr(jax.config, name) for name in settings}
  for name, value in settings.items():
    jax.config.update(name, value)
  yield
  for name, value in former.items():
    jax.config.update(name, value)
