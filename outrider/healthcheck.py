"""Asks a service for its health: `python -m outrider.healthcheck [HOST:PORT]`.

For container runtimes that know of exit statuses only. Kubernetes and load
balancers ask `grpc.health.v1` themselves.
"""

from __future__ import annotations

import os

import click
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from outrider.address import check_address
from outrider.config import (
    DEFAULT_DRAFT_PORT,
    DEFAULT_ORCHESTRATOR_PORT,
    DEFAULT_TARGET_PORT,
    FiniteRange,
)
from outrider.config_sources import ENVIRONMENT_PREFIX
from outrider.errors import ConfigurationError

_PORTS = {
    "ORCHESTRATOR": DEFAULT_ORCHESTRATOR_PORT,
    "DRAFT": DEFAULT_DRAFT_PORT,
    "TARGET": DEFAULT_TARGET_PORT,
}

# The address is on this machine: an HTTP proxy in the environment is not for it.
_OPTIONS = [("grpc.enable_http_proxy", 0)]


def check(address: str, timeout: float) -> str:
    """The health of the service at `address` by name ("SERVING", ...), or why there is none.

    `timeout` is in seconds. Raises ConfigurationError for what is no address.
    """
    check_address(address)
    with grpc.insecure_channel(address, options=_OPTIONS) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            response = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout)
        except grpc.RpcError as error:
            return str(error.code().name)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))


def check_own(timeout: float) -> str:
    """The health of the service in this container: of the first one that is at its port.

    The ports are those that the services take from the environment, or by default.
    """
    status = "UNAVAILABLE"
    for role, default in _PORTS.items():
        port = os.environ.get(f"{ENVIRONMENT_PREFIX}_{role}_PORT") or default
        status = check(f"127.0.0.1:{port}", timeout)
        if status != "UNAVAILABLE":
            break
    return status


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
        raise click.BadParameter(error.message, param_hint="ADDRESS") from error
    click.echo(status)
    raise SystemExit(0 if status == "SERVING" else 1)


if __name__ == "__main__":
    main()
