"""Notices at once when another process of a run ends before its time.

JAX notices it too, but after half a minute, and tells by aborting. Here every
process holds a connection to the first one, which the system closes when
either end dies. A process that has finished waits for the others to finish
before it leaves, so that by then none of them watches any more.
"""

import contextlib
import secrets
import selectors
import socket
import threading
from collections.abc import Callable
from typing import Any, Protocol

_TOKEN_BYTES = 16
_INDEX_BYTES = 4
_CONNECT_SECONDS = 20.0
# A machine that is lost closes nothing: it stops answering.
_KEEPALIVE = {'TCP_KEEPIDLE': 10, 'TCP_KEEPINTVL': 5, 'TCP_KEEPCNT': 3}

# Told which process has ended; doesn't return.
End = Callable[[int], Any]


class Vigil(Protocol):
  """One end of the connections, or all those of the first process."""

  def close(self) -> None:
    """Watches no longer: this process has finished."""
    ...


class Server:
  """The first process, watching all others."""

  def __init__(self, processes: int) -> None:
    """Opens a port.

    Args:
      processes: number of processes, this one included.
    """
    self._token = secrets.token_bytes(_TOKEN_BYTES)
    both = socket.has_dualstack_ipv6()
    self._socket = socket.create_server(
      ('', 0),
      family=socket.AF_INET6 if both else socket.AF_INET,
      dualstack_ipv6=both,
      backlog=processes,
    )
    self._closing = threading.Event()

  @property
  def address(self) -> dict[str, Any]:
    """Where others connect, ready for JSON."""
    return {
      'host': socket.gethostname(),
      'port': self._socket.getsockname()[1],
      'token': self._token.hex(),
    }

  def watch(self, end: End) -> 'Server':
    """Starts to watch the processes that connect.

    Args:
      end: told if one of them has ended.
    """
    threading.Thread(target=self._run, args=(end,), daemon=True).start()
    return self

  def close(self) -> None:
    """Watches no longer: this process has finished."""
    self._closing.set()

  def _run(self, end: End) -> None:
    others: dict[Any, int] = {}
    with selectors.DefaultSelector() as selector:
      selector.register(self._socket, selectors.EVENT_READ)
      while not self._closing.is_set():
        for key, _ in selector.select():
          if key.fileobj is self._socket:
            accepted = self._accept()
            if accepted is not None:
              connection, index = accepted
              others[connection] = index
              selector.register(connection, selectors.EVENT_READ)
          elif not self._closing.is_set():  # nobody ever sends anything
            end(others[key.fileobj])

  def _accept(self) -> tuple[socket.socket, int] | None:
    connection, _ = self._socket.accept()
    connection.settimeout(_CONNECT_SECONDS)
    size = _TOKEN_BYTES + _INDEX_BYTES
    try:
      hello = connection.recv(size, socket.MSG_WAITALL)
    except OSError:
      hello = b''
    token, index = hello[:_TOKEN_BYTES], hello[_TOKEN_BYTES:]
    if not secrets.compare_digest(token, self._token):
      connection.close()  # somebody else's
      return None
    _keep_alive(connection)
    return connection, int.from_bytes(index)


class Client:
  """Any other process, watching the first one."""

  def __init__(self, address: dict[str, Any], index: int, end: End) -> None:
    """Connects in the background.

    Where that is impossible nothing is watched, and JAX must notice.

    Args:
      address: of the server.
      index: of this process.
      end: told if the first process has ended.
    """
    self._address = address
    self._hello = bytes.fromhex(address['token']) + index.to_bytes(_INDEX_BYTES)
    self._end = end
    self._closing = threading.Event()
    threading.Thread(target=self._run, daemon=True).start()

  def close(self) -> None:
    """Watches no longer: this process has finished."""
    self._closing.set()

  def _run(self) -> None:
    where = (self._address['host'], self._address['port'])
    try:
      connection = socket.create_connection(where, _CONNECT_SECONDS)
      connection.sendall(self._hello)
    except OSError:
      return
    _keep_alive(connection)
    with contextlib.suppress(OSError):
      connection.recv(1)  # returns when the other end dies
    if not self._closing.is_set():
      self._end(0)


def _keep_alive(connection: socket.socket) -> None:
  connection.settimeout(None)
  connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  for name, seconds in _KEEPALIVE.items():
    if hasattr(socket, name):  # not on every system
      connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)
