"""Asks a service for its health: `python -m outrider.healthcheck HOST:PORT`.

For container runtimes that know of exit statuses only. Kubernetes and load
balancers ask `grpc.health.v1` themselves.
"""

from __future__ import annotations

import click
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from outrider.address import check_address
from outrider.errors import ConfigurationError

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


@click.command("healthcheck")
@click.argument("address")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=3.0,
    show_default=True,
    help="Seconds to wait for an answer.",
)
def main(address: str, timeout: float) -> None:
    """Exit with 0 if the service at ADDRESS (host:port) serves, with 1 if it does not."""
    try:
        status = check(address, timeout)
    except ConfigurationError as error:
        raise click.BadParameter(error.message, param_hint="ADDRESS") from error
    click.echo(status)
    raise SystemExit(0 if status == "SERVING" else 1)


if __name__ == "__main__":
    main()
