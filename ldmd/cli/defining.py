"""Verbs that change what a domain is made of, and the one that writes its definition."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TextIO

import click

from ldmd.cli import output
from ldmd.cli.definitions import show_change
from ldmd.cli.keywords import (
    DOMAIN_KEYS,
    SET_VDISK_KEYS,
    SET_VNET_KEYS,
    VDISK_KEYS,
    VNET_KEYS,
    parse_keywords,
    parse_memory,
    parse_volume,
    split_pairs,
)
from ldmd.cli.session import Failure, Manager, pass_manager
from ldmd.client import ControlClient
from ldmd.definition import from_document, read_toml, to_toml
from ldmd.description import Change
from ldmd.errors import DefinitionError, LdmdError

Document = dict[str, Any]

DELAYED_NOTE: Final = (
    "of an active domain: when it has been stopped; `ldm cancel-reconf` takes it back until then"
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
keyword_words = click.argument("words", metavar="[KEY=VALUE]...", nargs=-1)


def ask_for_change(
    manager: Manager, as_json: bool, verb: str, make_arguments: Callable[[], Mapping[str, object]]
) -> None:
    """Ask, and say what has changed. ``make_arguments`` may raise what is wrong with the words."""
    try:
        arguments = make_arguments()
    except LdmdError as error:
        raise Failure(error) from error
    answer = manager.ask(lambda client: client.call(verb, arguments))
    if as_json:
        output.print_json(answer)
    else:
        print_changes(answer)


def print_changes(answer: Mapping[str, Any]) -> None:
    name, waiting = answer["domain"], {change["what"] for change in answer["pending"]}
    if not answer["changes"]:
        click.echo(f"{name}: nothing changes")
    for change in answer["changes"]:
        when = " (delayed)" if change["what"] in waiting else ""
        click.echo(f"{name}: {change['what']} {show_change(Change(**change))}{when}")
    if any(change["what"] in waiting for change in answer["changes"]):
        click.echo(f"  delayed: made when {name} has been stopped")
        click.echo(f"  `ldm cancel-reconf {name}` takes it back until then")


# ---- the domain itself -----------------------------------------------------------------------


@click.command("set-domain", short_help="Change what a domain is made of.")
@click.option("-i", "--input", "file", type=click.File(), help="The whole definition; - is stdin.")
@json_option
@click.argument("words", metavar="KEY=VALUE... DOMAIN", nargs=-1)
@pass_manager
def set_domain(
    manager: Manager, file: TextIO | None, as_json: bool, words: tuple[str, ...]
) -> None:
    """Change keys of a domain's definition, or with -i all of it.

    \b
    cpu-arch=generic|native|MODEL      mig-allowed=yes|no
    vcpus=N                            memory=SIZE, like 512MiB or 2G
    huge-pages=none|2MiB|1GiB          optional-devices=rng,watchdog
    machine=TYPE                       firmware=NAME
    hypervisor=KIND (inactive domains)

    Of an active domain only mig-allowed changes at once. All else is made when it has been
    stopped (delayed reconfiguration); `ldm cancel-reconf` takes it back until then. Where the
    Logical Domains Manager does that for its control domain alone, here it is for all.

    With -i the definition is one that `ldm list-constraints` printed, and names the domain.
    """
    if file is not None:
        if words:
            raise click.UsageError("-i gives all of the definition: say no more")
        ask_for_change(
            manager, as_json, "set-definition", lambda: {"definition": read_definition(file)}
        )
        return
    if len(words) < 2:
        raise click.UsageError("say KEY=VALUE... DOMAIN, or -i FILE")
    *pairs, domain = words
    ask_for_change(
        manager,
        as_json,
        "set-domain",
        lambda: {"domain": domain, "settings": parse_keywords(pairs, DOMAIN_KEYS)},
    )


def read_definition(file: TextIO) -> Document:
    """Raises DefinitionError. It has a uuid only where the file has one."""
    try:
        return read_toml(file.read())
    except UnicodeDecodeError as error:
        raise DefinitionError(f"the definition is not UTF-8: {error}") from error


@click.command("rename-domain", short_help="Give an inactive or bound domain another name.")
@json_option
@click.argument("domain")
@click.argument("new_name", metavar="NEWNAME")
@pass_manager
def rename_domain(manager: Manager, as_json: bool, domain: str, new_name: str) -> None:
    """Give an inactive or bound domain another name. It stays the same domain: its uuid stays.

    An active domain gets another name when it is migrated: `ldm migrate-domain ldg1 host-b:ldg9`.
    The Logical Domains Manager has no such verb.
    """
    arguments = {"domain": domain, "new_name": new_name}
    ask_for_change(manager, as_json, "rename-domain", lambda: arguments)


@click.command("cancel-reconf", short_help="Take a delayed reconfiguration back.")
@json_option
@click.argument("domain")
@pass_manager
def cancel_reconf(manager: Manager, as_json: bool, domain: str) -> None:
    """Forget every change of an active domain that waits for its end; what it has now stays."""
    cancel_reconfiguration(manager, as_json, domain)


def cancel_reconfiguration(manager: Manager, as_json: bool, domain: str) -> None:
    answer = manager.ask(lambda client: client.call("cancel-reconf", {"domain": domain}))
    if as_json:
        output.print_json(answer)
        return
    for change in answer["changes"]:
        click.echo(
            f"{answer['domain']}: taken back: {change['what']} {show_change(Change(**change))}"
        )


# ---- CPUs and memory -------------------------------------------------------------------------


def _amount_commands(
    resource: str, metavar: str, parse: Callable[[str], int], key: str, what: str
) -> Iterable[click.Command]:
    for action, help_text in (
        ("add", f"Give a domain more {what}"),
        ("set", f"Say how {'much' if what == 'memory' else 'many'} {what} a domain has"),
        ("remove", f"Take {what} from a domain"),
    ):
        yield _amount_command(f"{action}-{resource}", metavar, parse, key, help_text)


def _amount_command(
    verb: str, metavar: str, parse: Callable[[str], int], key: str, help_text: str
) -> click.Command:
    @click.command(verb, help=f"{help_text}; {DELAYED_NOTE}.", short_help=f"{help_text}.")
    @json_option
    @click.argument("amount", metavar=metavar)
    @click.argument("domain")
    @pass_manager
    def command(manager: Manager, as_json: bool, amount: str, domain: str) -> None:
        def make_arguments() -> Document:
            try:
                value = parse(amount)
            except ValueError as error:
                raise DefinitionError(str(error)) from error
            if verb.startswith("set-"):
                return {"domain": domain, "settings": {key: value}}
            return {"domain": domain, "amount": value}

        asked = "set-domain" if verb.startswith("set-") else verb
        ask_for_change(manager, as_json, asked, make_arguments)

    return command


def _parse_count(value: str) -> int:
    if not (value.isascii() and value.isdigit()):
        raise ValueError(f"{value!r} is not a whole number")
    return int(value)


# ---- devices ---------------------------------------------------------------------------------


@click.command("add-vdisk", short_help="Give a domain a virtual disk.")
@json_option
@keyword_words
@click.argument("name")
@click.argument("volume", metavar="VOLUME@SERVICE")
@click.argument("domain")
@pass_manager
def add_vdisk(
    manager: Manager, as_json: bool, words: tuple[str, ...], name: str, volume: str, domain: str
) -> None:
    """Give a domain a virtual disk; of an active domain: when it has been stopped.

    \b
    read-only=yes|no      cache=none|directsync|writethrough|writeback|unsafe
    mpgroup=GROUP

    The Logical Domains Manager says these of the volume; here they are the disk's.
    """

    def make_arguments() -> Document:
        try:
            place = parse_volume(volume)
        except ValueError as error:
            raise DefinitionError(str(error)) from error
        return {
            "domain": domain,
            "vdisk": {"name": name, **place, **parse_keywords(words, VDISK_KEYS)},
        }

    ask_for_change(manager, as_json, "add-vdisk", make_arguments)


@click.command("set-vdisk", short_help="Change a virtual disk of a domain.")
@json_option
@keyword_words
@click.argument("name")
@click.argument("domain")
@pass_manager
def set_vdisk(
    manager: Manager, as_json: bool, words: tuple[str, ...], name: str, domain: str
) -> None:
    """Change a virtual disk of a domain; of an active domain: when it has been stopped.

    \b
    volume=VOLUME@SERVICE     read-only=yes|no     mpgroup=GROUP (empty for none)
    cache=none|directsync|writethrough|writeback|unsafe
    """
    ask_for_change(
        manager,
        as_json,
        "set-vdisk",
        lambda: {"domain": domain, "name": name, "settings": parse_keywords(words, SET_VDISK_KEYS)},
    )


@click.command("add-vnet", short_help="Give a domain a virtual network device.")
@json_option
@keyword_words
@click.argument("name")
@click.argument("switch")
@click.argument("domain")
@pass_manager
def add_vnet(
    manager: Manager, as_json: bool, words: tuple[str, ...], name: str, switch: str, domain: str
) -> None:
    """Give a domain a virtual network device on a virtual switch; of an active domain: when it
    has been stopped.

    \b
    mac-addr=52:54:00:12:34:56 (the manager chooses one without it)     mtu=N
    """
    ask_for_change(
        manager,
        as_json,
        "add-vnet",
        lambda: {
            "domain": domain,
            "vnet": {"name": name, "switch": switch, **parse_keywords(words, VNET_KEYS)},
        },
    )


@click.command("set-vnet", short_help="Change a virtual network device of a domain.")
@json_option
@keyword_words
@click.argument("name")
@click.argument("domain")
@pass_manager
def set_vnet(
    manager: Manager, as_json: bool, words: tuple[str, ...], name: str, domain: str
) -> None:
    """Change a virtual network device of a domain; of an active domain: when it has been stopped.

    \b
    vswitch=SWITCH     mac-addr=52:54:00:12:34:56     mtu=N
    """
    ask_for_change(
        manager,
        as_json,
        "set-vnet",
        lambda: {"domain": domain, "name": name, "settings": parse_keywords(words, SET_VNET_KEYS)},
    )


def _remove_device_command(kind: str, what: str) -> click.Command:
    @click.command(
        f"remove-{kind}",
        help=f"Take a {what} from a domain; {DELAYED_NOTE}.",
        short_help=f"Take a {what} from a domain.",
    )
    @json_option
    @click.argument("name")
    @click.argument("domain")
    @pass_manager
    def command(manager: Manager, as_json: bool, name: str, domain: str) -> None:
        arguments = {"domain": domain, "name": name}
        ask_for_change(manager, as_json, f"remove-{kind}", lambda: arguments)

    return command


# ---- variables -------------------------------------------------------------------------------


def _variable_command(verb: str, short_help: str) -> click.Command:
    @click.command(verb, help=f"{short_help} {DELAYED_NOTE.capitalize()}.", short_help=short_help)
    @json_option
    @click.argument("words", metavar="NAME=VALUE...", nargs=-1, required=True)
    @click.argument("domain")
    @pass_manager
    def command(manager: Manager, as_json: bool, words: tuple[str, ...], domain: str) -> None:
        ask_for_change(
            manager, as_json, verb, lambda: {"domain": domain, "variables": split_pairs(words)}
        )

    return command


@click.command("remove-variable", short_help="Take variables from a domain.")
@json_option
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.argument("domain")
@pass_manager
def remove_variable(manager: Manager, as_json: bool, names: tuple[str, ...], domain: str) -> None:
    """Take variables from a domain; of an active domain: when it has been stopped."""
    arguments = {"domain": domain, "names": list(names)}
    ask_for_change(manager, as_json, "remove-variable", lambda: arguments)


# ---- the definition, written -----------------------------------------------------------------


@click.command("list-constraints", short_help="Print definitions, as add-domain takes them.")
@click.option(
    "-o",
    "--output",
    "form",
    type=click.Choice(["toml", "json"]),
    default="toml",
    help="toml (default): what `ldm add-domain -i` and `ldm set-domain -i` take.",
)
@click.option("--json", "form", flag_value="json", help="The same as -o json.")
@click.option("-p", "--parseable", is_flag=True, help="Lines of KIND|key=value|…")
@click.option("--pending", is_flag=True, help="What it shall be, where a reconfiguration waits.")
@click.argument("names", metavar="[DOMAIN]...", nargs=-1)
@pass_manager
def list_constraints(
    manager: Manager, form: str, parseable: bool, pending: bool, names: tuple[str, ...]
) -> None:
    """Print the definitions of the domains of this host, or of those named.

    The Logical Domains Manager's -x, which prints XML, is TOML here. Several definitions in TOML
    follow each other, and are to be taken apart before one is given back.
    """

    async def ask(client: ControlClient) -> list[Document]:
        listing = await client.list_domains(names)
        return [await client.show_definitions(d["name"]) for d in listing["domains"]]

    found = manager.ask(ask)
    shown = [
        answer["pending"] if pending and answer["pending"] else answer["definition"]
        for answer in found
    ]
    if parseable:
        print_parseable_definitions(shown)
    elif form == "json":
        output.print_json({"domains": found})
    else:
        for index, (answer, definition) in enumerate(zip(found, shown, strict=True)):
            if index:
                click.echo()
            if answer["pending"]:
                name = definition["name"]
                click.echo(
                    f"# as it is when {name} has been stopped"
                    if pending
                    else f"# until {name} is stopped; then: `ldm list-constraints --pending {name}`"
                )
            click.echo(to_toml(from_document(definition)), nl=False)


def print_parseable_definitions(definitions: Iterable[Document]) -> None:
    click.echo("VERSION 1.0")
    for definition in definitions:
        for kind, values in _records(definition):
            output.print_record(kind, values)


def _records(definition: Document) -> Iterable[tuple[str, Document]]:
    def yes_no(value: bool) -> str:
        return "yes" if value else "no"

    yield (
        "DOMAIN",
        {key: definition[key] for key in ("name", "uuid", "hypervisor", "machine", "firmware")}
        | {
            "mig-allowed": yes_no(definition["mig-allowed"]),
            "optional-devices": ",".join(definition["optional-devices"]),
        },
    )
    yield "VCPU", {"count": definition["vcpus"], "cpu-arch": definition["cpu-arch"]}
    yield "MEMORY", {"size": definition["memory-bytes"], "huge-pages": definition["huge-pages"]}
    yield "VARIABLES", definition["variables"]
    for disk in definition["vdisks"]:
        values = {"name": disk["name"], "vol": f"{disk['volume']}@{disk['service']}"}
        values |= {"read-only": yes_no(disk["read-only"]), "cache": disk["cache"]}
        yield "VDISK", values | {"mpgroup": disk["mpgroup"]}
    for net in definition["vnets"]:
        values = {"name": net["name"], "service": net["switch"]}
        yield "VNET", values | {"mac-addr": net["mac"], "mtu": net["mtu"]}


COMMANDS: Final = (
    list_constraints,
    set_domain,
    rename_domain,
    *_amount_commands("vcpu", "COUNT", _parse_count, "vcpus", "virtual CPUs"),
    *_amount_commands("memory", "SIZE", parse_memory, "memory-bytes", "memory"),
    add_vdisk,
    set_vdisk,
    _remove_device_command("vdisk", "virtual disk"),
    add_vnet,
    set_vnet,
    _remove_device_command("vnet", "virtual network device"),
    _variable_command("add-variable", "Give a domain variables that it has not."),
    _variable_command("set-variable", "Give variables of a domain a value."),
    remove_variable,
    cancel_reconf,
)
