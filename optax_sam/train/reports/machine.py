"""Versions and hardware, on which the numbers of a report depend."""

import importlib.metadata
import os
import pathlib
import platform

import jax

_PACKAGES = (
  'optax-sam',
  'jax',
  'jaxlib',
  'optax',
  'flax',
  'numpy',
  'scipy',
  'scikit-learn',
)


def versions() -> dict[str, str]:
  """Returns the versions of Python and of relevant packages."""
  found = {'python': platform.python_version()}
  for package in _PACKAGES:
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      continue  # a source tree, or a package for another dataset
  return found


def describe() -> dict[str, str]:
  """Returns device, processor, number of cores and operating system."""
  device = jax.devices()[0]
  return {
    'device': f'{jax.device_count()} x {device.device_kind}',
    'processor': _processor(),
    'cores': str(_cores()),
    'system': f'{platform.system()} {platform.machine()}',
  }


def _cores() -> int:
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _processor() -> str:
  information = pathlib.Path('/proc/cpuinfo')
  if information.exists():
    for line in information.read_text(encoding='utf-8').splitlines():
      if line.startswith('model name'):
        return line.partition(':')[2].strip()
  return platform.processor() or 'unknown'
