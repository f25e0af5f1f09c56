"""Versions and hardware, on which the numbers of a report depend."""

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
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      continue  # a source tree
  return found


def describe() -> dict[str, str]:
  """Returns device, processor, number of cores and operating system."""
  device = jax.devices()[0]
  information = pathlib.Path('/proc/cpuinfo')
  text = information.read_text('utf-8') if information.exists() else ''
  processor = re.search(r'^model name\s*: (.+)$', text, re.MULTILINE)
  cores = os.cpu_count() or 1
  if hasattr(os, 'sched_getaffinity'):
    cores = len(os.sched_getaffinity(0))
  return {
    'device': f'{jax.device_count()} x {device.device_kind}',
    'processor': processor[1]
    if processor
    else platform.processor() or 'unknown',
    'cores': str(cores),
    'system': f'{platform.system()} {platform.machine()}',
  }
