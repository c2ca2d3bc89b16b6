"""A draft or target service whose passes take no time.

    python -m benchmarks.support.instant_service draft|target --model FOLDER --port 0

Everything but the engine is the service's own (`instant_engine.py`). The tokenizer is that of
`FOLDER`.
"""

import click

from outrider.settings.options import ServerOptions, run_service, server_options


@click.command("instant")
@server_options(0)
@click.argument("kind", type=click.Choice(["draft", "target"]))
@click.option("--model", required=True)
def main(server: ServerOptions, kind: str, model: str) -> None:
    # Imports gRPC, whose settings are made by now.
    from benchmarks.support.instant_engine import serve_draft, serve_target

    (serve_draft if kind == "draft" else serve_target)(server, model)


if __name__ == "__main__":
    run_service(main)
