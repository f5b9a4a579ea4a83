"""`enginesmith webhooks` and `enginesmith usage`: who is told of jobs, and what takes how much."""

from __future__ import annotations

from typing import Annotated

import typer

from .cli_state import state

webhooks = typer.Typer(help="Who is told what happens to jobs: add, list, show, ping and delete.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    app.add_typer(webhooks, name="webhooks")
    app.command()(usage)


@webhooks.command()
def add(
    context: typer.Context,
    url: str,
    event: Annotated[list[str] | None, typer.Option(help="job.failed; again for more (how jobs end)")] = None,
    secret: Annotated[str | None, typer.Option(help="signs what is sent (one is made)")] = None,
) -> None:
    """Has a URL called, and prints its id and the secret, this once."""
    told = state(context)
    made = told.client.webhooks.add(url, event, secret)
    told.answer(made, lambda: told.say(f"{made['id']} {made['secret']}"))


@webhooks.command("list")
def list_(context: typer.Context) -> None:
    """All of them, without their secrets."""
    told = state(context)
    found = told.client.webhooks.list()
    rows = [
        [w["id"], w["url"], " ".join(w["events"]), "on" if w["active"] else "off", w["waiting"], w["failures"]]
        for w in found
    ]
    told.answer({"items": found}, lambda: told.table(["webhook", "url", "events", "", "waiting", "failures"], rows))


@webhooks.command()
def show(context: typer.Context, id: str) -> None:
    """One, with its last deliveries."""
    told = state(context)
    told.answer(told.client.webhooks.get(id))


@webhooks.command()
def ping(context: typer.Context, id: str) -> None:
    """Sends it an event, to see whether it arrives."""
    told = state(context)
    told.answer(told.client.webhooks.ping(id))


@webhooks.command()
def delete(context: typer.Context, id: str) -> None:
    """Calls it no more."""
    told = state(context)
    told.client.webhooks.delete(id)
    told.answer({"deleted": id}, lambda: told.say(f"deleted {id}"))


def usage(context: typer.Context) -> None:
    """What takes how much of the store, and how much is free."""
    told = state(context)
    told.answer(told.client.usage())
