"""`enginesmith keys`: who may use a service. Run where the service runs: it works on the service's own stores."""

from __future__ import annotations

from typing import Annotated

import typer

from .cli_serve import Data, become
from .cli_state import State

keys = typer.Typer(help="API keys: make, list and revoke them, where the service runs.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    app.add_typer(keys, name="keys")


@keys.command()
def create(
    context: typer.Context,
    name: Annotated[str | None, typer.Option(help="whose it is; for people")] = None,
    scopes: Annotated[str | None, typer.Option(help="predict, write, admin; as in predict+write (predict)")] = None,
    requests_per_second: Annotated[float | None, typer.Option(help="of all replicas together (no limit)")] = None,
    jobs: Annotated[int | None, typer.Option(help="that may not have ended at once (no limit)")] = None,
    max_bytes: Annotated[
        int | None, typer.Option("--bytes", help="of all that is made with it and still there (no limit)")
    ] = None,
    data: Data = None,
) -> None:
    """Makes a key and prints it, this once. It counts within a second."""
    options: dict[str, object] = {"--name": name, "--scopes": scopes, "--data": data, "--jobs": jobs}
    _run(context, "create", options | {"--requests-per-second": requests_per_second, "--bytes": max_bytes})


@keys.command()
def ensure(
    context: typer.Context,
    file: Annotated[str, typer.Argument(help="what holds the key, and nothing else")],
    name: Annotated[str | None, typer.Option(help="whose it is; for people")] = None,
    scopes: Annotated[str | None, typer.Option(help="predict, write, admin; as in predict+write (predict)")] = None,
    for_others: Annotated[bool, typer.Option(help="other users of the machine may read the file")] = False,
    data: Data = None,
) -> None:
    """Makes a key and writes it into a file, unless one that is valid is there."""
    words = ["ensure", file, *(["--for-others"] if for_others else [])]
    _become(context, words, {"--name": name, "--scopes": scopes, "--data": data})


@keys.command("list")
def list_(context: typer.Context, data: Data = None) -> None:
    """All keys, the revoked too; never the keys themselves."""
    _run(context, "list", {"--data": data})


@keys.command()
def revoke(
    context: typer.Context,
    key: Annotated[str, typer.Argument(help="its id, or its name")],
    data: Data = None,
) -> None:
    """Takes a key back: nobody is let in with it a second later."""
    _run(context, f"revoke {key}", {"--data": data})


def _run(context: typer.Context, command: str, options: dict[str, object]) -> None:
    _become(context, command.split(" ", 1), options)


def _become(context: typer.Context, words: list[str], options: dict[str, object]) -> None:
    state: State = context.obj
    become("app", "keys", options, words=[*words, *(["--json"] if state.as_json else [])])
