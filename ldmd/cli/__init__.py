"""The ``ldm`` command: says what a person wants to the manager, and what the manager answers.

No logic: every verb is one request on the control socket (``ldmd/control.py``).
"""

from __future__ import annotations

from pathlib import Path

import click

import ldmd
from ldmd.cli import console, domains, faults, listing, migrating, words
from ldmd.cli.demo import COMMANDS as DEMO_COMMANDS
from ldmd.cli.session import SOCKET_DEFAULT, SOCKET_VARIABLE, Manager


class VerbGroup(click.Group):
    """Verbs with the short forms of ``words.py``."""

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


for command in (
    *listing.COMMANDS,
    *domains.COMMANDS,
    *console.COMMANDS,
    *migrating.COMMANDS,
    *faults.COMMANDS,
    *DEMO_COMMANDS,
):
    main.add_command(command)
