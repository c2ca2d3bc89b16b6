"""Asks a service for its health: `python -m outrider.healthcheck [HOST:PORT]`.

For container runtimes, which check exit statuses only. Kubernetes and load
balancers ask `grpc.health.v1` themselves.
"""

import os

import click
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from outrider.errors import ConfigurationError
from outrider.protocol.channel import open_channel
from outrider.settings.options import (
    DEFAULT_DRAFT_PORT,
    DEFAULT_ORCHESTRATOR_PORT,
    DEFAULT_TARGET_PORT,
)
from outrider.settings.sources import ENVIRONMENT_PREFIX
from outrider.settings.types import FiniteRange

_PORTS = {
    "ORCHESTRATOR": DEFAULT_ORCHESTRATOR_PORT,
    "DRAFT": DEFAULT_DRAFT_PORT,
    "TARGET": DEFAULT_TARGET_PORT,
}


def check(address: str, timeout: float) -> str:
    """The health of the service at `address` by name ("SERVING", ...), or why it is unknown.

    `timeout` is in seconds. Raises ConfigurationError for an invalid address.
    """
    with open_channel(grpc, address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            response = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout)
        except grpc.RpcError as error:
            return str(error.code().name)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))


def check_own(timeout: float) -> str:
    """The health of the service in this container: of the first one that answers at its port.

    The ports are those that the services take from the environment, or by default. Raises
    ConfigurationError for an invalid port.
    """
    ports = (_port(role, default) for role, default in _PORTS.items())
    found = (check(f"127.0.0.1:{port}", timeout) for port in ports)
    return next((status for status in found if status != "UNAVAILABLE"), "UNAVAILABLE")


def _port(role: str, default: int) -> int:
    name = f"{ENVIRONMENT_PREFIX}_{role}_PORT"
    value = os.environ.get(name)
    if not value:
        return default
    if not value.isdecimal() or not 1 <= int(value) <= 65535:
        raise ConfigurationError(f"{name}: {value!r:.60} is not a port from 1 to 65535")
    return int(value)


@click.command("healthcheck")
@click.argument("address", required=False)
@click.option(
    "--timeout",
    type=FiniteRange(min=0, min_open=True),
    default=3.0,
    show_default=True,
    help="Seconds to wait for an answer.",
)
def main(address: str | None, timeout: float) -> None:
    """Exit with 0 if the service at ADDRESS (host:port) serves, with 1 if it does not.

    Without ADDRESS, the one service of this container is asked.
    """
    try:
        status = check_own(timeout) if address is None else check(address, timeout)
    except ConfigurationError as error:
        hint = None if address is None else "ADDRESS"
        raise click.BadParameter(error.message, param_hint=hint) from error
    click.echo(status)
    raise SystemExit(0 if status == "SERVING" else 1)


if __name__ == "__main__":
    main()
