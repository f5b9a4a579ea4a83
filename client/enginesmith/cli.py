"""The command `enginesmith`. Results go to stdout, progress and complaints to stderr.

Exit codes: 0 done · 1 refused, or a job failed or was cancelled · 2 the command line is wrong · 3 nobody answers ·
4 the job is done and its verdict is rejected · 5 it is done and unproven · 130 interrupted.
`--url`, `--key` and `--json` may stand anywhere: `enginesmith --json jobs list` is `enginesmith jobs list --json`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Annotated, Any

import typer
from rich.console import Console

from . import cli_bench, cli_jobs, cli_keys, cli_models, cli_serve, cli_smaller, cli_tuning, cli_webhooks
from .cli_hints import in_commands, meant
from .cli_state import State, UsageError
from .errors import ApiError, EnginesmithError, TimedOut, Unreachable

app = typer.Typer(
    name="enginesmith",
    help="Give it a trained model; it gives back a faster one, shows how accurate it still is, and serves it.\n\n"
    "What follows an option in round brackets is what it is unless you say something else.",
    epilog="Exit codes: 0 done; 1 refused, or the job failed or was cancelled; 2 the command line is wrong; 3 nobody "
    "answers; 4 the job is done and its verdict is rejected, 5 unproven; 130 interrupted. Results go to stdout, "
    "progress and remarks to stderr; with --json stdout is one JSON document.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
cli_serve.add_to(app)
cli_models.add_to(app)
cli_jobs.add_to(app)
cli_smaller.add_to(app)
cli_tuning.add_to(app)
cli_bench.add_to(app)
cli_keys.add_to(app)
cli_webhooks.add_to(app)


def _tell_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"enginesmith {metadata.version('enginesmith')}\n")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    url: Annotated[str | None, typer.Option(help="the service", envvar="ENGINESMITH_URL")] = None,
    key: Annotated[str | None, typer.Option(help="an API key", envvar="ENGINESMITH_API_KEY")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON document on stdout, and nothing else")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="which Enginesmith this is", is_eager=True, callback=_tell_version)
    ] = False,
) -> None:
    context.obj = told = State(url, key, as_json)
    context.call_on_close(told.close)


def hoist(arguments: list[str]) -> list[str]:
    """The global options moved to the front, where typer wants them."""
    front: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif word == "--json" or word.startswith(("--url=", "--key=")):
            front.append(word)
        elif word in ("--url", "--key"):
            front += [word, *([value] if (value := next(words, None)) is not None else [])]
        else:
            rest.append(word)
    return front + rest


def check_command(words: list[str]) -> None:
    """Raises UsageError for a command that stands under `jobs`, as in `enginesmith cancel JOB`, and where a service is
    named for one that asks none."""
    rest = iter(words)
    named: list[str] = []
    for word in rest:
        if word in ("--url", "--key"):
            next(rest, None)
        if word.startswith(("--url", "--key")):
            named.append(word[:5])
        elif not word.startswith("-"):
            if word in cli_serve.ALONE and named:
                raise UsageError(
                    f"enginesmith {word} asks no service: {named[0]} says nothing here",
                    "it works on the stores: --data, or ENGINESMITH_STORE_URL and ENGINESMITH_REDIS_URL, says which",
                )
            if word in {command.name for command in cli_jobs.jobs.registered_commands}:
                raise UsageError(f"there is no command {word!r}", f"enginesmith {' '.join(['jobs', word, *rest])}")
            return


def complain(
    error: EnginesmithError | UsageError | OSError | ValueError, console: Console, as_json: bool, words: list[str]
) -> None:
    """What is wrong, which fields, and what to do: on stderr; with --json as a problem body on stdout too."""
    say: Callable[[str], None] = lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True)  # noqa: E731
    hint = getattr(error, "hint", None)
    detail = str(error)
    if isinstance(error, OSError) and error.filename:
        detail, hint = f"{error.filename}: {error.strerror}", "name a file that is there and can be read"
    if isinstance(error, ApiError):
        say(f"error: {error.detail} ({error.status} {error.code})")
        for line in error.fields:
            if line not in error.detail:  # which begins with the first of them
                say(f"  {line}")
        if choice := meant(" ".join([error.detail, *error.fields]), words):
            hint = f"did you mean {choice}?"
    else:
        say(f"error: {detail}")
    if hint:
        say(f"hint: {in_commands(hint)}")
    if as_json:
        body: dict[str, Any] = {"detail": detail, "hint": hint}
        if isinstance(error, ApiError):
            body = error.raw or {"status": error.status, "code": error.code, "detail": error.detail, "hint": hint}
        sys.stdout.write(json.dumps({"error": body}) + "\n")


def main(arguments: list[str] | None = None) -> None:
    """The entry point. Ends the process with one of the exit codes above."""
    words = hoist(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in words[: words.index("--")] if "--" in words else "--json" in words
    console = Console(stderr=True)
    try:
        check_command(words)
        app(words, prog_name="enginesmith", standalone_mode=True)
    except KeyboardInterrupt:
        console.print("interrupted", markup=False)
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output has gone (`| head`); what is still buffered must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Unreachable as error:
        complain(error, console, as_json, words)
        sys.exit(3)
    except (UsageError, FileNotFoundError, IsADirectoryError, PermissionError, ValueError) as error:
        complain(error, console, as_json, words)
        sys.exit(2)
    except (ApiError, TimedOut, EnginesmithError) as error:
        complain(error, console, as_json, words)
        sys.exit(1)


if __name__ == "__main__":
    main()
