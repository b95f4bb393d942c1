"""Verbs that make a domain, change its state, and remove it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, TextIO

import click

from ldmd.cli import output
from ldmd.cli.session import Failure, Manager, pass_manager
from ldmd.client import ControlClient
from ldmd.errors import DefinitionError

if TYPE_CHECKING:
    from ldmd.definition import DomainDefinition

STATE_VERBS: Final[Mapping[str, tuple[str, str]]] = {
    "bind-domain": (
        "bound",
        "Give domains their memory and devices.",
    ),
    "unbind-domain": ("inactive", "Take memory and devices from bound domains."),
    "start-domain": ("started", "Start bound domains."),
    "stop-domain": ("stopped", "End active domains, as a power cut would."),
    "suspend-domain": ("suspended", "Halt active domains; their state stays."),
    "resume-domain": ("resumed", "Let suspended domains go on."),
    "remove-domain": ("removed", "Forget inactive domains."),
}
"""Verb -> what is said when it is done, and its help."""


@click.command("add-domain", short_help="Make a domain from a definition.")
@click.option("-i", "--input", "file", type=click.File(), help="The definition; - is stdin.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.argument("words", metavar="[KEY=VALUE... DOMAIN]", nargs=-1)
@pass_manager
def add_domain(
    manager: Manager, file: TextIO | None, as_json: bool, words: tuple[str, ...]
) -> None:
    """Make a domain, inactive, from a definition in TOML, or with the keys of set-domain.

    \b
    name = "ldg1"
    hypervisor = "qemu"
    machine = "pc"
    memory = "2GiB"
    vcpus = 2

    \b
    ldm add-domain hypervisor=qemu machine=pc memory=2G vcpus=2 ldg1
    """
    if (file is None) == (not words):
        raise click.UsageError("say -i FILE, or KEY=VALUE... DOMAIN")
    from ldmd.definition import from_toml, to_document

    definition = _make(lambda: from_toml(file.read()) if file else _from_words(words))
    added = manager.ask(lambda client: client.add_domain(to_document(definition)))
    if as_json:
        output.print_json(added)
    else:
        click.echo(f"{added['name']} added, uuid {added['uuid']}")


def _from_words(words: tuple[str, ...]) -> DomainDefinition:
    from ldmd.cli.keywords import NEW_DOMAIN_KEYS, parse_keywords
    from ldmd.definition import from_document

    *pairs, name = words
    given = parse_keywords(pairs, NEW_DOMAIN_KEYS)
    return from_document({"name": name, "uuid": str(uuid.uuid4())} | given)


def _make(make: Callable[[], DomainDefinition]) -> DomainDefinition:
    """Raises Failure."""
    try:
        return make()
    except DefinitionError as error:
        raise Failure(error) from error
    except UnicodeDecodeError as error:
        raise Failure(DefinitionError(f"the definition is not UTF-8: {error}")) from error


def _state_command(verb: str, done: str, help_text: str) -> click.Command:
    @click.command(verb, help=help_text)
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
    @click.argument("names", metavar="DOMAIN...", nargs=-1, required=True)
    @pass_manager
    def command(manager: Manager, names: tuple[str, ...], as_json: bool) -> None:
        async def change_all(client: ControlClient) -> None:
            # One after the other: the first that fails ends it, and what was done was said.
            for name in names:
                domain = await client.change_domain(verb, name)
                if as_json:
                    output.print_json(domain)
                else:
                    click.echo(f"{name} {done}")

        manager.ask(change_all)

    return command


COMMANDS: Final = (
    add_domain,
    *(_state_command(verb, done, text) for verb, (done, text) in STATE_VERBS.items()),
)
