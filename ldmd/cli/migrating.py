"""Verbs that move a domain to another host, and stop that."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Mapping
from typing import Any, Final

import click
import trio

from ldmd.cli import output
from ldmd.cli.progress import BarView, View, open_view
from ldmd.cli.session import Failure, Manager, pass_manager, run
from ldmd.client import connect
from ldmd.control_lines import error_document
from ldmd.errors import ChecksFailed, LdmdError

TARGET: Final = re.compile(r"(?:(?P<user>[^@:]+)@)?(?P<host>[^@:]+)(?::(?P<name>[^@:]+))?")
MIGRATION_ID: Final = re.compile(r"[0-9a-f]{32}")
INTERRUPT_NOTE: Final = "cancel asked for; waiting for the answer (Ctrl-C again to stop waiting)"


class Target(click.ParamType[tuple[str, str | None]]):
    """``[USER@]HOST[:NEWNAME]`` -> host and new name. The user is ldm(8)'s and not needed here."""

    name = "target"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str | None]:
        match = TARGET.fullmatch(str(value))
        if match is None:
            self.fail(f"{value!r} is not [USER@]HOST[:NEWNAME]", param, ctx)
        if match["user"] is not None:
            click.echo("ldm: managers know each other by certificate, no user is needed", err=True)
        return match["host"], match["name"]


@click.command("migrate-domain", short_help="Move a domain to another host.")
@click.option("-n", "--dry-run", is_flag=True, help="Run the checks alone; nothing changes.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
@click.argument("domain")
@click.argument("target", metavar="[USER@]HOST[:NEWNAME]", type=Target())
@pass_manager
def migrate_domain(
    manager: Manager, dry_run: bool, as_json: bool, domain: str, target: tuple[str, str | None]
) -> None:
    """Move a domain to another host, under another name there if one is given.

    Ctrl-C asks for a cancel and waits for the true answer; leaving in any other way does not
    stop the migration.
    """
    peer, new_name = target
    try:
        with open_view(output.make_console(), quiet=as_json or dry_run) as view:
            result = run(
                lambda: migrate(manager, domain, peer, view, new_name=new_name, dry_run=dry_run)
            )
            if isinstance(view, BarView):
                view.finish()
    except Failure as failure:
        _explain(failure.error, domain, dry_run=dry_run, as_json=as_json)
        raise
    if as_json:
        output.print_json(result)
    elif dry_run:
        output.print_findings(result["findings"])
        click.echo(f"migrating {domain} to {peer} would succeed")
    else:
        output.print_moved(result)


def _explain(error: LdmdError, domain: str, *, dry_run: bool, as_json: bool) -> None:
    """What stdout has to say of a failure; stderr gets the sentence."""
    if as_json:
        output.print_json(error_document(error))
    elif isinstance(error, ChecksFailed):
        findings = error.facts.get("findings")
        output.print_findings(findings if isinstance(findings, list) else [])
        if dry_run:
            click.echo(f"migrating {domain} would fail if attempted")


async def migrate(
    manager: Manager, domain: str, peer: str, view: View, *, new_name: str | None, dry_run: bool
) -> dict[str, Any]:
    """The migration's result, shown while it happens. Raises LdmdError, KeyboardInterrupt."""

    begun = trio.Event()
    migration = ""

    def show(document: Mapping[str, Any]) -> None:
        nonlocal migration
        if document["event"] == "begun":
            migration = document["migration"]
            begun.set()
        else:
            view.show(document)

    async def cancel() -> None:
        await begun.wait()  # this one is meant, and no other of that domain
        async with connect(manager.socket) as second:
            view.note((await second.cancel_migration(migration=migration))["sentence"])

    async with connect(manager.socket) as client, trio.open_nursery() as nursery:
        await nursery.start(watch_interrupts, view, cancel, nursery)
        result = await client.migrate_domain(
            domain, peer, new_name=new_name, dry_run=dry_run, on_progress=show
        )
        nursery.cancel_scope.cancel()
    return result


async def watch_interrupts(
    view: View,
    cancel: Callable[[], Any],
    nursery: trio.Nursery,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Ctrl-C once: ``cancel``, and go on waiting. Twice: raise KeyboardInterrupt."""
    asked = False
    with trio.open_signal_receiver(signal.SIGINT) as interrupts:
        task_status.started()
        async for _ in interrupts:
            if asked:
                view.note("no longer waiting: `ldm list-domain -o status` shows how it goes on")
                raise KeyboardInterrupt
            asked = True
            view.note(INTERRUPT_NOTE)
            nursery.start_soon(_cancel_or_say_why, view, cancel)


async def _cancel_or_say_why(view: View, cancel: Callable[[], Any]) -> None:
    try:
        await cancel()
    except LdmdError as error:
        view.note(f"the cancel was not taken: {error.sentence}")


@click.command("cancel-operation", short_help="Cancel a domain's migration.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.argument("kind", metavar="migration", type=click.Choice(["migration"]))
@click.argument("domain")
@pass_manager
def cancel_operation(manager: Manager, as_json: bool, kind: str, domain: str) -> None:
    """Cancel a domain's migration, and say who has the domain in the end.

    DOMAIN is its name or uuid, or the whole id of one migration. Exits 1 when it was too late.
    """
    asked = {"migration" if MIGRATION_ID.fullmatch(domain) else "domain": domain}
    answer = manager.ask(lambda client: client.cancel_migration(**asked))
    if as_json:
        output.print_json(answer)
    else:
        click.echo(answer["sentence"])
    if answer["outcome"] != "cancelled":
        raise click.exceptions.Exit(1)


@click.command("recover-migration", short_help="Decide for a peer that never comes back.")
@click.option(
    "--keep-here", "decision", flag_value="keep-here", help="The domain stays on this host."
)
@click.option(
    "--give-up-here", "decision", flag_value="give-up-here", help="The domain is the peer's."
)
@click.option("--reason", required=True, help="Kept in the journal, with your name.")
@click.option("--yes", is_flag=True, help="Do not ask whether the peer is off and stays off.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.argument("migration")
@pass_manager
def recover_migration(
    manager: Manager,
    decision: str | None,
    reason: str,
    yes: bool,
    as_json: bool,
    migration: str,
) -> None:
    """Decide a migration whose other side will never answer.

    Only for a peer that is off and stays off: were it running the domain, there would be two.
    The peer is tried once more, and the command refused if it answers.
    """
    if decision is None:
        raise click.UsageError("say --keep-here or --give-up-here")
    if not yes:
        click.confirm(
            "Is the other host off, and made sure to stay off, so that it cannot run the domain?",
            abort=True,
        )
    document = manager.ask(lambda client: client.recover_migration(migration, decision, reason))
    if as_json:
        output.print_json(document)
    else:
        output.print_migration(document)


COMMANDS: Final = (migrate_domain, cancel_operation, recover_migration)
