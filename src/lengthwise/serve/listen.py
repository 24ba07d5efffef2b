"""Ports: which are free, and a socket that has its address before anything slow is done."""

from __future__ import annotations

import socket

from lengthwise.errors import InputError


def bound(host: str, port: int) -> socket.socket:
    """A TCP socket bound to `host`:`port`; it does not listen yet.

    Raises:
        InputError: there is no such host, or the port cannot be had.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind)
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host {host}: {why_not(error)}") from None
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise InputError(
            f"cannot listen at {host}:{port}: {error.strerror}; choose another --port"
        ) from None
    return listener


def why_not(error: Exception) -> str:
    """Why an address cannot be had, by what a socket raised."""
    if isinstance(error, UnicodeError | TypeError):  # an empty part, or one that is too long
        return "no name of a host"
    if isinstance(error, OverflowError):
        return "no such port"
    return getattr(error, "strerror", None) or type(error).__name__


def address_of(listener: socket.socket, host: str, scheme: str = "http") -> str:
    """The URL of a bound socket."""
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}:{listener.getsockname()[1]}"


def require_free_port(host: str, port: int) -> None:
    """Raise InputError when nothing could listen on `host`:`port`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do: a port whose last connections are only just closed counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, TypeError, OverflowError) as error:
            reason = why_not(error)
            raise InputError(
                f"cannot listen on {host or '*'} port {port} ({reason}): stop the program that "
                "uses it or choose another with --port"
            ) from None


def free_port() -> int:
    """A TCP port that is free now on this machine's own address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
