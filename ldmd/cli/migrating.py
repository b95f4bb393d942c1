"""Verbs that move a domain to another host, and stop that."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Mapping
from typing import Any, Final

import click
import trio
from attrs import field, frozen

from ldmd.cli import output
from ldmd.cli.defining import cancel_reconfiguration
from ldmd.cli.progress import BarView, View, open_view
from ldmd.cli.session import Failure, Manager, pass_manager, run
from ldmd.client import connect
from ldmd.control_lines import error_document
from ldmd.errors import ChecksFailed, LdmdError

TARGET: Final = re.compile(r"(?:(?P<user>[^@:]+)@)?(?P<host>[^@:]+)(?::(?P<name>[^@:]+))?")
WOULD_SUCCEED: Final = "would succeed"
WOULD_FAIL: Final = "would fail if attempted"
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
@click.option("-f", "--force", is_flag=True, help="Take the risk where a check lets you.")
@click.option("-p", "--parseable", is_flag=True, help="Print records for programs at the end.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
@click.argument("domain")
@click.argument("target", metavar="[USER@]HOST[:NEWNAME]", type=Target())
@pass_manager
def migrate_domain(
    manager: Manager,
    dry_run: bool,
    force: bool,
    parseable: bool,
    as_json: bool,
    domain: str,
    target: tuple[str, str | None],
) -> None:
    """Move a domain to another host, under another name there if one is given.

    Ctrl-C asks for a cancel and waits for the true answer; leaving in any other way does not
    stop the migration.
    """
    order = Order(domain, *target, dry_run=dry_run, force=force)
    form = "json" if as_json else "records" if parseable else "text"
    view: View
    try:
        with open_view(output.make_console(), quiet=dry_run or form != "text") as view:
            result = run(lambda: migrate(manager, order, view))
            if isinstance(view, BarView):
                view.finish()
    except Failure as failure:
        _explain(failure.error, order, form, shown=view.findings_shown)
        if dry_run and form != "json" and isinstance(failure.error, ChecksFailed):
            raise click.exceptions.Exit(failure.error.exit_status) from None  # all was said
        raise
    if form == "json":
        output.print_json(result)
    elif form == "records":
        verdict = WOULD_SUCCEED if dry_run else "moved"
        output.print_parseable_check(order.describe(), result["findings"], verdict)
    elif dry_run:
        output.print_findings(result["findings"])
        click.echo(f"migrating {domain} to {order.peer} {WOULD_SUCCEED}")
    else:
        output.print_moved(result)


@frozen
class Order:
    """What is to be moved where, and how."""

    domain: str
    peer: str
    new_name: str | None
    dry_run: bool = field(kw_only=True)
    force: bool = field(kw_only=True)

    def describe(self) -> dict[str, object]:
        return {"domain": self.domain, "target": self.peer, "new-name": self.new_name}


def _explain(error: LdmdError, order: Order, form: str, *, shown: bool) -> None:
    """What stdout has to say of a failure; stderr gets the sentence. ``shown``: it had the findings while it waited."""
    if form == "json":
        output.print_json(error_document(error))
        return
    found = error.facts.get("findings")
    findings = found if isinstance(found, list) else []
    checks_failed = isinstance(error, ChecksFailed)
    if form == "records":
        verdict = WOULD_FAIL if order.dry_run and checks_failed else error.code
        output.print_parseable_check(order.describe(), findings, verdict)
    elif checks_failed:
        if not shown:
            output.print_findings(findings)
        if order.dry_run:
            click.echo(f"migrating {order.domain} to {order.peer} {WOULD_FAIL}")


async def migrate(manager: Manager, order: Order, view: View) -> dict[str, Any]:
    """The migration's result, shown while it happens. Raises LdmdError, KeyboardInterrupt."""

    begun = trio.Event()
    migration = ""

    def show(document: Mapping[str, Any]) -> None:
        nonlocal migration
        if "migration" in document:  # another one when it comes back from a full target
            migration = document["migration"]
            begun.set()
        if document["event"] != "begun":
            view.show(document)

    async def cancel() -> None:
        await begun.wait()  # this one is meant, and no other of that domain
        async with connect(manager.socket) as second:
            view.note((await second.cancel_migration(migration=migration))["sentence"])

    async with connect(manager.socket) as client, trio.open_nursery() as nursery:
        await nursery.start(watch_interrupts, view, cancel, nursery)
        result = await client.migrate_domain(
            order.domain,
            order.peer,
            new_name=order.new_name,
            dry_run=order.dry_run,
            force=order.force,
            on_progress=show,
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


@click.command("cancel-operation", short_help="Cancel a domain's migration or reconfiguration.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.argument("kind", metavar="migration|reconf", type=click.Choice(["migration", "reconf"]))
@click.argument("domain")
@pass_manager
def cancel_operation(manager: Manager, as_json: bool, kind: str, domain: str) -> None:
    """Cancel a domain's migration, and say who has the domain in the end; or its reconfiguration.

    DOMAIN is its name or uuid, or the whole id of one migration. Exits 1 when it was too late.
    `cancel-operation reconf` is `cancel-reconf`.
    """
    if kind == "reconf":
        cancel_reconfiguration(manager, as_json, domain)
        return
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
