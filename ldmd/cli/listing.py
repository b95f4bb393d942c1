"""Verbs that show: domains, migrations, the manager itself."""

from __future__ import annotations

from typing import Any, Final

import click

from ldmd.cli import output
from ldmd.cli.session import Manager, pass_manager
from ldmd.client import ControlClient

MIGRATIONS_SHOWN: Final = 100

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.command("list-domain", short_help="Show the domains of this host.")
@click.option("-l", "--long", is_flag=True, help="Everything, definitions too.")
@click.option("-p", "--parseable", is_flag=True, help="Lines of KIND|key=value|…")
@json_option
@click.option(
    "-o",
    "--output",
    "what",
    type=click.Choice(["domain", "status"]),
    default="domain",
    help="domain: what they are (default); status: what is being done with them.",
)
@click.argument("names", metavar="[DOMAIN]...", nargs=-1)
@pass_manager
def list_domain(
    manager: Manager,
    long: bool,
    parseable: bool,
    as_json: bool,
    what: str,
    names: tuple[str, ...],
) -> None:
    """Show the domains of this host, or those named."""

    async def ask(client: ControlClient) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        listing = await client.list_domains(names)
        chosen = listing["domains"] if long else []
        return listing, {d["name"]: await client.show_definition(d["name"]) for d in chosen}

    listing, definitions = manager.ask(ask)
    domains = listing["domains"]
    if as_json:
        for domain in domains if long else ():
            domain["definition"] = definitions[domain["name"]]
        output.print_json(listing)
    elif parseable:
        output.print_parseable(domains, status=what == "status")
    elif long:
        output.print_details(domains, definitions)
    elif what == "status":
        output.print_status(domains)
    else:
        output.print_domains(domains)


@click.command("list-migrations", short_help="Show migrations, and who has the domain.")
@click.option(
    "-n",
    "count",
    type=click.IntRange(min=1),
    default=MIGRATIONS_SHOWN,
    show_default=True,
    help="So many of the newest.",
)
@click.option("--all", "every", is_flag=True, help="All that the journal has.")
@json_option
@pass_manager
def list_migrations(manager: Manager, as_json: bool, count: int, every: bool) -> None:
    """Show this host's migrations, to and from it, and who has the domain.

    The newest come first. What is under way is shown always.
    """
    limit = None if every else count
    migrations, more = manager.ask(lambda client: client.list_migrations(limit))
    if as_json:
        output.print_json({"migrations": migrations, "more": more})
    else:
        output.print_migrations(migrations)
        if more:
            click.echo("there are older ones: --all shows them", err=True)


@click.command("show-migration", short_help="Show one migration's records.")
@json_option
@click.argument("migration")
@pass_manager
def show_migration(manager: Manager, as_json: bool, migration: str) -> None:
    """Show one migration's records in this host's journal."""
    document = manager.ask(lambda client: client.show_migration(migration))
    if as_json:
        output.print_json(document)
    else:
        output.print_migration(document)


@click.command("status", short_help="Show the manager of this host.")
@json_option
@pass_manager
def status(manager: Manager, as_json: bool) -> None:
    """Show the manager of this host: its release, port, peers and room."""
    document = manager.ask(lambda client: client.status())
    if as_json:
        output.print_json(document)
    else:
        output.print_manager(document)


COMMANDS: Final = (list_domain, list_migrations, show_migration, status)
