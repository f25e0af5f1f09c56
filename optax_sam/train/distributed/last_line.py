"""The last line of a process, also if JAX aborts it.

If another process has ended or does not respond, JAX aborts a process from C++,
with a stack trace. So a helper process reads standard error and omits what C++
writes. If this process ends early, the helper prints the line that was set for
this case. The helper runs this file as a program.
"""

import os
import re
import subprocess
import sys
from typing import Any

# Log lines of C++ and their continuations, blank lines, and what is announced.
_NATIVE = re.compile(
  rb'[IWEF]\d{4} \d\d:|Additional GRPC|:UNKNOWN|RPC: |The tasks? |\d*$|\0'
)
_FATAL = re.compile(rb'F\d{4} ')
_SET = b'\0'
_ERROR = b'optax-sam: error: '


_helper: Any = None
_stderr = -1


def begin() -> None:
  """Redirects standard error to a helper process, until `end`."""
  global _helper, _stderr
  sys.stderr.flush()
  _stderr = os.dup(2)
  helper: Any = subprocess.Popen(
    [sys.executable, '-I', '-S', __file__],
    stdin=subprocess.PIPE,
    stdout=_stderr,
    start_new_session=True,  # Ctrl-C must not end it
  )
  os.dup2(helper.stdin.fileno(), 2)
  _helper = helper


def announce(message: str) -> None:
  """Sets the line to print if this process ends before `end`."""
  line = _ERROR + message.encode() if message else b''
  _helper.stdin.write(_SET + line + b'\n')
  _helper.stdin.flush()


def end(*, mute: bool = False) -> None:
  """Waits until all is printed; `mute` drops what C++ writes afterwards."""
  sys.stderr.flush()
  announce('')
  os.dup2(os.open(os.devnull, os.O_WRONLY) if mute else _stderr, 2)
  os.close(_stderr)
  _helper.stdin.close()
  _helper.wait()


def _relay() -> None:
  """Copies lines from standard input to standard output."""
  last, fatal = b'\n', False
  for line in sys.stdin.buffer:
    is_error = line.startswith(_ERROR)
    if is_error or line.startswith(_SET):
      last = b'' if is_error else line[len(_SET) :]
    if is_error or not (fatal or _NATIVE.match(line)):
      os.write(1, line)
    fatal = fatal or bool(_FATAL.match(line))  # a stack trace follows
  if last.strip():
    os.write(1, last)


if __name__ == '__main__':
  _relay()
