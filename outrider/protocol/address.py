"""Validation of addresses.

gRPC accepts almost any string: it takes a missing port as 443, a URL as an unknown host, and a port
of seven digits as another port.
"""

import ipaddress
import re
import socket

from outrider.errors import ConfigurationError

# Of gRPC's name syntax: those whose endpoints are HOST:PORT, and others, which pass unchecked.
_HOST_SCHEMES = ("dns", "ipv4", "ipv6")
_OTHER_SCHEMES = ("unix", "unix-abstract", "vsock", "xds")

# A character of a name or an IPv4 address.
_NAME = r"[^\s:/@?#\[\]\ud800-\udfff]"

_ENDPOINT = re.compile(rf"(?P<host>\[[^\[\]]*\]|{_NAME}*)(?P<port>:.*)?", re.DOTALL)


def check_address(address: str) -> str:
    """Returns the address: HOST:PORT, [IPV6]:PORT, or a gRPC name such as dns:///HOST:PORT.

    Raises:
        ConfigurationError: it is not a valid address; the message says why.
    """
    if not isinstance(address, str):
        raise ConfigurationError(f"an address is a string, HOST:PORT, and not {address!r:.100}")
    scheme, colon, rest = address.partition(":")
    if colon and scheme in _OTHER_SCHEMES:
        return address
    if colon and scheme in _HOST_SCHEMES:
        for endpoint in rest.rpartition("/")[2].split(","):
            _check_endpoint(endpoint, address)
    elif rest.startswith("//"):
        raise ConfigurationError(f"{address!r:.100} is a URL: write HOST:PORT, without {scheme}://")
    else:
        _check_endpoint(address, address)
    return address


def _check_endpoint(endpoint: str, address: str) -> None:
    where = f"address {address!r:.100}"
    if endpoint.count(":") > 1 and "[" not in endpoint:
        raise ConfigurationError(f"{where}: an IPv6 address is written [ADDRESS]:PORT")
    found = _ENDPOINT.fullmatch(endpoint)
    if found is None:
        raise ConfigurationError(f"{where} is not of the form HOST:PORT")
    host, port = found["host"], (found["port"] or "")[1:]
    if not host:
        raise ConfigurationError(f"{where} names no host: write HOST:PORT")
    if host.startswith("[") and not _is_ipv6(host[1:-1]):
        raise ConfigurationError(f"{where}: {host} is not an IPv6 address")
    if not port:
        raise ConfigurationError(f"{where} names no port: write {host}:PORT")
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise ConfigurationError(f"{where}: the port must be a number from 1 to 65535")


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def host_without_brackets(host: str) -> str:
    """Returns a host to listen on, a name or an IP address, without brackets.

    Raises:
        ConfigurationError: it is not a host, or has a port.
    """
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if _is_ipv6(bare):
        return bare
    if bare != host or not re.fullmatch(f"{_NAME}+", host):
        raise ConfigurationError(f"{host!r:.100} is not a host: write a name or an IP address")
    return host


def join_host_port(host: str, port: int) -> str:
    """HOST:PORT, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def dialable(address: str) -> str:
    """The address at which this machine can connect to a service that listens on `address`."""
    host, _, port = address.rpartition(":")
    local = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}
    return f"{local.get(host, host)}:{port}"


def check_free(host: str, port: int) -> None:
    """Raises ConfigurationError if this machine cannot listen there; the message says why."""
    try:
        # Of a name with addresses of both kinds, the IPv4 one.
        family, *_, address = min(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        socket.create_server(address, family=family).close()
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (while")[0]  # what Python adds
        raise ConfigurationError(
            f"cannot listen on {join_host_port(host, port)}: {reason}"
        ) from error
