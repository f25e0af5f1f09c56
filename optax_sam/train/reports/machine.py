"""Versions and hardware, which affect the numbers of a report."""

import contextlib
import importlib.metadata
import os
import pathlib
import platform
import re

import jax

_PACKAGES = 'optax-sam jax jaxlib optax flax numpy scipy scikit-learn'


def versions() -> dict[str, str]:
  """Returns the versions of Python and of relevant packages."""
  found = {'python': platform.python_version()}
  for package in _PACKAGES.split():
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[package] = importlib.metadata.version(package)
  return found


def cores() -> int:
  """Returns the number of cores that this process may use."""
  affinity = getattr(os, 'sched_getaffinity', None)  # not on macOS
  return len(affinity(0)) if affinity else os.cpu_count() or 1


def describe() -> dict[str, str]:
  """Returns device, processor, number of cores and operating system."""
  path = pathlib.Path('/proc/cpuinfo')
  text = path.read_text('utf-8') if path.exists() else ''
  name = re.search(r'^model name\s*: (.+)$', text, re.MULTILINE)
  return {
    'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
    'processor': name[1] if name else platform.processor() or 'unknown',
    'cores': str(cores()),
    'system': f'{platform.system()} {platform.machine()}',
  }
