"""XLA settings of tests: cheap compilation, and a shared cache.

Tests spend nearly all of their time compiling. The cheap settings disable
optimizations but do not change results. Tests that inspect the optimized HLO,
or that compare results bit for bit, compile with the default settings of users.
"""

import os

import jax

_QUICK = {
  'xla_backend_optimization_level': 0,
  'xla_llvm_disable_expensive_passes': True,
  # Parallel compilation of one function does not help small functions when all
  # cores are busy.
  'xla_cpu_parallel_codegen_split_count': 1,
}
_THOROUGH = {
  'xla_backend_optimization_level': 3,
  'xla_llvm_disable_expensive_passes': False,
  'xla_cpu_parallel_codegen_split_count': 32,
}


def _emitters(used: bool) -> dict[str, bool]:
  # Later versions reject this flag.
  known = jax.__version_info__ < (0, 11)
  return {'xla_cpu_use_fusion_emitters': used} if known else {}


FLAGS = ' '.join(
  f'--{name}={str(value).lower()}'
  for name, value in (_QUICK | _emitters(used=False)).items()
)
# Options of one function for `jax.jit` and `compile`: all defaults of users, or
# only those that affect the optimized HLO.
AS_USERS = {'compiler_options': _THOROUGH | _emitters(used=True)}
READ_AS_USERS = {'compiler_options': _QUICK | _emitters(used=True)}

# Environment variable with the directory of the compilation cache.
_DIRECTORY = 'OPTAX_SAM_TEST_PROGRAMS'


def is_set_up() -> bool:
  """Whether XLA's flags are already set for this process."""
  return 'XLA_FLAGS' in os.environ


def compile_cheaply() -> None:
  """Sets the cheap flags for this process, but not for its children."""
  os.environ['XLA_FLAGS'] = FLAGS
  jax.devices()  # reads the flags
  del os.environ['XLA_FLAGS']


def share_programs(directory: str | None = None) -> None:
  """Shares compiled functions between all processes of a test run.

  Functions are still traced, and tests count these traces; only XLA's
  compilation is cached.

  Args:
    directory: an empty directory; None for that of the present test run.
  """
  if directory is not None:
    os.environ[_DIRECTORY] = directory
  for name, value in _cache(os.environ[_DIRECTORY]).items():
    jax.config.update(name.lower(), value)


def environment(*flags: str) -> dict[str, str]:
  """Returns the environment of a process with cheap flags and further ones.

  The process does not share compiled functions, because flags are a part of the
  cache key.
  """
  found = {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ' '.join((FLAGS, *flags))}
  directory = os.environ.get(_DIRECTORY)
  if directory is not None:
    found |= {name: str(x) for name, x in _cache(directory).items()}
    found['PYTHONWARNINGS'] = f'ignore:{TORN}'
  return found


# A process may read a cache entry while others write it; then it compiles the
# function itself.
TORN = 'Error reading persistent compilation cache entry'


def _cache(directory: str) -> dict[str, str | int]:
  return {
    'JAX_COMPILATION_CACHE_DIR': directory,
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': 0,
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': -1,
  }
