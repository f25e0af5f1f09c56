"""How XLA compiles in tests: cheaply, and each program once.

Next to all of the time of the tests goes into compiling. The cheap settings
leave out what makes programs fast and not what they compute. Tests that read
what XLA's optimizer makes of a program, or that ask for equality to the bit as
users have it, compile as users do.
"""

import os

import jax

_QUICK = {
  'xla_backend_optimization_level': 0,
  'xla_llvm_disable_expensive_passes': True,
  # Parts of a program are compiled side by side, and linked: small programs
  # gain nothing, and all cores have work.
  'xla_cpu_parallel_codegen_split_count': 1,
}
_THOROUGH = {
  'xla_backend_optimization_level': 3,
  'xla_llvm_disable_expensive_passes': False,
  'xla_cpu_parallel_codegen_split_count': 32,
}


def _emitters(used: bool) -> dict[str, bool]:
  # Later versions don't know it, and would stop.
  known = jax.__version_info__ < (0, 11)
  return {'xla_cpu_use_fusion_emitters': used} if known else {}


FLAGS = ' '.join(
  f'--{name}={str(value).lower()}'
  for name, value in (_QUICK | _emitters(used=False)).items()
)
# Of one program, for `jax.jit` and `compile`: everything as users have it, or
# what decides about the optimized program, as far as that can be read.
AS_USERS = {'compiler_options': _THOROUGH | _emitters(used=True)}
READ_AS_USERS = {'compiler_options': _QUICK | _emitters(used=True)}

# Where the processes of one run of the tests find its compiled programs.
_DIRECTORY = 'OPTAX_SAM_TEST_PROGRAMS'


def is_set_up() -> bool:
  """Whether somebody else has decided how this process compiles."""
  return 'XLA_FLAGS' in os.environ


def compile_cheaply() -> None:
  """Compiles cheaply in this process, but not in those that it starts."""
  os.environ['XLA_FLAGS'] = FLAGS
  jax.devices()  # reads them
  del os.environ['XLA_FLAGS']


def share_programs(directory: str | None = None) -> None:
  """Keeps compiled programs for all processes of this run of the tests.

  Functions are traced as ever, and tests count these traces; only XLA's part
  of the work is not repeated.

  Args:
    directory: an empty one; that of the run which this process belongs to if
      None.
  """
  if directory is not None:
    os.environ[_DIRECTORY] = directory
  for name, value in _cache(os.environ[_DIRECTORY]).items():
    jax.config.update(name.lower(), value)


def environment(*flags: str) -> dict[str, str]:
  """Returns what a process needs to compile cheaply, and with these flags.

  Such a process has programs of its own: flags are a part of what they are
  known by.
  """
  found = {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ' '.join((FLAGS, *flags))}
  directory = os.environ.get(_DIRECTORY)
  if directory is not None:
    found |= {name: str(x) for name, x in _cache(directory).items()}
    found['PYTHONWARNINGS'] = f'ignore:{TORN}'
  return found


# Two processes write the same program, and a third one reads it half: then it
# compiles it itself.
TORN = 'Error reading persistent compilation cache entry'


def _cache(directory: str) -> dict[str, str | int]:
  return {
    'JAX_COMPILATION_CACHE_DIR': directory,
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': 0,
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': -1,
  }
