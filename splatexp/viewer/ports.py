"""The port that a page is served on: the one that was asked for, or the next free one."""

import errno
import socket

TRIED = 100  # ports, from the first one on


def free_port(host: str, port: int) -> int:
    """The first port from `port` on that nobody listens on at `host`.

    Raises: ValueError, one line, for a host that is not of this machine, and where no port may be had.
    """
    for candidate in range(port, min(port + TRIED, 65536)):
        try:
            places = socket.getaddrinfo(host, candidate, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (socket.gaierror, UnicodeError):
            raise ValueError(f"viewer.host: expected an address of this machine, got {host!r}") from None
        try:
            for family, kind, protocol, _, place in places:
                with socket.socket(family, kind, protocol) as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(place)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                continue
            if error.errno == errno.EADDRNOTAVAIL:
                raise ValueError(f"viewer.host: expected an address of this machine, got {host!r}") from None
            raise ValueError(f"viewer.port: {candidate} cannot be had: {error.strerror}") from None
        return candidate
    raise ValueError(f"viewer.port: expected a free one within {TRIED} from {port} on, found none")
