"""The ``ldm`` command: says what a person wants to the manager, and what the manager answers.

No logic: every verb is one request on the control socket (``ldmd/control.py``).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Final

import click

import ldmd
from ldmd.cli import words
from ldmd.cli.session import SOCKET_DEFAULT, SOCKET_VARIABLE, Manager

MODULES: Final[dict[str, tuple[str, ...]]] = {
    "listing": ("list-domain", "list-migrations", "show-migration", "status"),
    "domains": (
        "add-domain",
        "bind-domain",
        "unbind-domain",
        "start-domain",
        "stop-domain",
        "suspend-domain",
        "resume-domain",
        "remove-domain",
    ),
    "console": ("console",),
    "defining": (
        "list-constraints",
        "set-domain",
        "rename-domain",
        *(f"{what}-{thing}" for thing in ("vcpu", "memory") for what in ("add", "set", "remove")),
        *(f"{what}-{thing}" for thing in ("vdisk", "vnet") for what in ("add", "set", "remove")),
        *(f"{what}-variable" for what in ("add", "set", "remove")),
        "cancel-reconf",
    ),
    "migrating": ("migrate-domain", "cancel-operation", "recover-migration"),
    "faults": ("fault",),
    "demo": ("demo",),
}
"""Module of this package -> its verbs, in the order of the help."""


class Commands(MutableMapping[str, click.Command]):
    """Every verb's command; a module is imported when the first of its verbs is asked for.

    Most of the time that a short verb takes is the start of Python, and of what it imports.
    """

    def __init__(self) -> None:
        self._module_of = {verb: module for module, verbs in MODULES.items() for verb in verbs}
        self._made: dict[str, click.Command] = {}

    def __getitem__(self, verb: str) -> click.Command:
        if verb not in self._made:
            module = importlib.import_module(f"ldmd.cli.{self._module_of[verb]}")
            self._made |= {command.name: command for command in module.COMMANDS}
        return self._made[verb]

    def __setitem__(self, verb: str, command: click.Command) -> None:
        self._made[verb] = command

    def __delitem__(self, verb: str) -> None:
        raise TypeError("verbs are not taken away")

    def __iter__(self) -> Iterator[str]:
        return iter(self._module_of)

    def __len__(self) -> int:
        return len(self._module_of)


class VerbGroup(click.Group):
    """Verbs with the short forms of ``words.py``."""

    commands: MutableMapping[str, click.Command]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        found = words.find_verbs(args[0], self.commands) if args else []
        if len(found) > 1:
            ctx.fail(f"{args[0]!r} can mean {', '.join(found)}")
        return super().resolve_command(ctx, [*found, *args[1:]] if found else args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=VerbGroup,
    commands=Commands(),
    epilog="Verbs have short forms (`ldm list`, `ldm migrate`), and `ldm VERB --help` says more.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--socket",
    envvar=SOCKET_VARIABLE,
    default=SOCKET_DEFAULT,
    show_default=True,
    show_envvar=True,
    type=click.Path(path_type=Path),
    help="The manager's control socket.",
)
@click.version_option(ldmd.__version__, prog_name="ldm", message="%(prog)s %(version)s")
@click.pass_context
def main(ctx: click.Context, socket: Path) -> None:
    """Manage the logical domains of this host and move them to others."""
    ctx.obj = Manager(socket)
