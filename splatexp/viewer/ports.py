"""The choice of the port on which the page is served."""

import errno
import socket

MAX_TRIES = 100  # ports that are tried, from the requested one on


def free_port(host: str, port: int) -> int:
    """Return the first port from `port` on to which nobody listens at `host`.

    Raises: ValueError, one line, for a host that is no address of this machine, and where no port is free.
    """
    for candidate in range(port, min(port + MAX_TRIES, 65536)):
        try:
            addresses = socket.getaddrinfo(host, candidate, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (socket.gaierror, UnicodeError):
            raise ValueError(f"viewer.host: expected an address of this machine, got {host!r}") from None
        try:
            for family, kind, protocol, _, address in addresses:
                with socket.socket(family, kind, protocol) as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                continue
            if error.errno == errno.EADDRNOTAVAIL:
                raise ValueError(f"viewer.host: expected an address of this machine, got {host!r}") from None
            raise ValueError(f"viewer.port: cannot listen on port {candidate}: {error.strerror}") from None
        return candidate
    raise ValueError(f"viewer.port: expected a free port within {MAX_TRIES} from {port} on, got none")
