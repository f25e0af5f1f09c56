"""Detects at once when another process of a run ends early.

JAX detects it too, but only after half a minute, and then aborts. Here every
process has a connection to the first one, which the operating system closes
when either process dies. A finished process waits for the others before it
exits, so that none of them reports it as dead.
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
# A lost machine does not close its connections: it stops responding.
_KEEPALIVE = {'TCP_KEEPIDLE': 10, 'TCP_KEEPINTVL': 5, 'TCP_KEEPCNT': 3}

# Called with the index of the process that has ended; does not return.
End = Callable[[int], Any]


class Heartbeat(Protocol):
  """A connection to the first process, or all connections of that one."""

  def close(self) -> None:
    """Stops watching, because this process has finished."""
    ...


class Server:
  """The watcher on the first process, connected to all others."""

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
    """The address for clients, ready for JSON."""
    return {
      'host': socket.gethostname(),
      'port': self._socket.getsockname()[1],
      'token': self._token.hex(),
    }

  def watch(self, end: End) -> 'Server':
    """Starts watching the processes that connect.

    Args:
      end: called with the index of a process that has ended.
    """
    threading.Thread(target=self._run, args=(end,), daemon=True).start()
    return self

  def close(self) -> None:
    """Stops watching, because this process has finished."""
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
          elif not self._closing.is_set():  # clients never send data
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
      connection.close()  # not a process of this run
      return None
    _keep_alive(connection)
    return connection, int.from_bytes(index)


class Client:
  """The watcher on any other process, connected to the first one."""

  def __init__(self, address: dict[str, Any], index: int, end: End) -> None:
    """Connects in the background.

    If the connection fails, only JAX detects dead processes.

    Args:
      address: address of the server.
      index: index of this process.
      end: called if the first process has ended.
    """
    self._address = address
    self._hello = bytes.fromhex(address['token']) + index.to_bytes(_INDEX_BYTES)
    self._end = end
    self._closing = threading.Event()
    threading.Thread(target=self._run, daemon=True).start()

  def close(self) -> None:
    """Stops watching, because this process has finished."""
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
      connection.recv(1)  # returns when the server dies
    if not self._closing.is_set():
      self._end(0)


def _keep_alive(connection: socket.socket) -> None:
  connection.settimeout(None)
  connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  for name, seconds in _KEEPALIVE.items():
    if hasattr(socket, name):  # not on every system
      connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)
