"""What the command prints: tables for people, lines and JSON for programs.

Tables fit 80 columns on a terminal; in a pipe nothing is cut. The parseable form is that of ldm(8):
``VERSION 1.0``, then ``KIND|key=value|…`` with ``%``, ``|`` and line ends in values as ``%XX``.
"""

from __future__ import annotations

import datetime
import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from ldmd.cli.lines import PIPE_COLUMNS, find_columns, wrap
from ldmd.sizes import format_size

if TYPE_CHECKING:
    from rich.console import Console

Document = Mapping[str, Any]
NOTHING: Final = "-"
FIRST_COLUMN_MIN: Final = 16
DECISIONS: Final[Mapping[str, str]] = {
    "source": "stays",
    "target": "moved",
    "lost": "lost",
    "in doubt": "in doubt",
    "running": "running",
}
"""A migration's decision in one word, as ``list-migrations`` shows it."""
SAFE: Final = frozenset(range(0x20, 0x7F)) - {ord("|"), ord("%")}


def make_console() -> Console:
    from rich.console import Console

    width = None if sys.stdout.isatty() else PIPE_COLUMNS
    return Console(file=sys.stdout, width=width, highlight=False, markup=False)


def print_json(document: object) -> None:
    click.echo(json.dumps(document, indent=2, allow_nan=False))


def show_bytes(size_bytes: float) -> str:
    """``64.0 MiB``: a whole part of at most four digits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"


def show_seconds(seconds: float | None) -> str:
    """``0:07``, ``1:02:03``."""
    if seconds is None:
        return NOTHING
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def show_time(time_unix_ms: int) -> str:
    return f"{datetime.datetime.fromtimestamp(time_unix_ms / 1000):%Y-%m-%d %H:%M:%S}"


def print_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], right: Iterable[str] = ()
) -> None:
    """``right`` names the columns of numbers. The first column gives way where there is no room."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    room = find_room()
    too_wide = max(0, sum(widths) + 2 * (len(widths) - 1) - room)
    widths[0] = max(min(widths[0], FIRST_COLUMN_MIN), widths[0] - too_wide)
    numbers = set(right)

    def line(cells: Sequence[str]) -> str:
        padded = (
            _cut(cell, width).rjust(width) if name in numbers else _cut(cell, width).ljust(width)
            for name, cell, width in zip(header, cells, widths, strict=True)
        )
        return _cut("  ".join(padded).rstrip(), room)

    click.secho(line(header), bold=True)
    if rows:
        click.echo("\n".join(map(line, rows)))  # at once: each echo is a flush


def find_room() -> int:
    """Columns that a line may have."""
    return find_columns(sys.stdout)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def print_fields(title: str, fields: Mapping[str, object]) -> None:
    """A title and its fields below it, one a line; those that are None are left out."""
    click.secho(title, bold=True)
    width = max(map(len, fields), default=0)
    for name, value in fields.items():
        if value is not None:
            click.echo(f"  {name:<{width}}  {value}")


# ---- domains ---------------------------------------------------------------------------------


def print_domains(domains: Sequence[Document]) -> None:
    rows = [
        (
            domain["name"],
            domain["state"],
            domain["run_state"] or NOTHING,
            str(domain["vcpus"]),
            format_size(domain["memory_bytes"]),
            domain["hypervisor"],
            _doing(domain),
        )
        for domain in domains
    ]
    header = ("NAME", "STATE", "RUN", "VCPU", "MEMORY", "HYPERVISOR", "OPERATION")
    print_table(header, rows, right=("VCPU", "MEMORY"))


def _doing(domain: Document) -> str:
    if domain["operation"] is None and domain.get("reconfiguration_pending"):
        return "delayed reconf"
    return _operation(domain["operation"])


def _operation(operation: Document | None) -> str:
    if operation is None:
        return NOTHING
    arrow = "to" if operation["role"] == "source" else "from"
    how_far = "in doubt" if operation["in_doubt"] else _phase(operation)
    return f"{arrow} {operation['peer']}: {how_far}"


def _phase(operation: Document) -> str:
    """With its place while it is queued: ``queued 3``."""
    place = f" {operation['position']}" if operation["position"] else ""
    return f"{operation['phase']}{place}"


def print_status(domains: Sequence[Document]) -> None:
    """What is being done with the domains, and below it what needs a sentence."""
    header = ("NAME", "OPERATION", "ROLE", "PEER", "PHASE", "DONE", "RATE", "LEFT")
    busy = [(domain["name"], domain["operation"]) for domain in domains if domain["operation"]]
    if not busy:
        click.echo("no operation is under way")
        return
    rows = [
        (
            name,
            operation["kind"],
            operation["role"],
            operation["peer"],
            _phase(operation),
            NOTHING if operation["position"] else f"{operation['percent']:.0f} %",
            _rate(operation["rate_bytes_per_second"]),
            show_seconds(operation["remaining_seconds"]),
        )
        for name, operation in busy
    ]
    print_table(header, rows, right=("DONE", "RATE", "LEFT"))
    for name, operation in busy:
        if operation["in_doubt"]:
            said = f"{name} is in doubt: {operation['sentence']}"
            click.echo("\n" + wrap(said, stream=sys.stdout, indent=2))


def _rate(rate_bytes_per_second: float | None) -> str:
    return f"{show_bytes(rate_bytes_per_second)}/s" if rate_bytes_per_second else NOTHING


def print_details(domains: Sequence[Document], definitions: Mapping[str, Document]) -> None:
    """``definitions``: name -> ``definition`` and ``pending``."""
    from ldmd.cli.definitions import describe_definitions

    for index, domain in enumerate(domains):
        if index:
            click.echo()
        found, operation = definitions[domain["name"]], domain["operation"]
        fields: dict[str, object] = {
            "state": domain["state"],
            "run state": domain["run_state"],
            "uuid": domain["uuid"],
            **describe_definitions(found["definition"], found["pending"]),
        }
        for disk in found["definition"]["vdisks"]:
            named = f"{disk['volume']}@{disk['service']}"
            path = domain["vdisks"].get(disk["name"]) or named
            if path != named:
                field = f"vdisk {disk['name']}"
                fields[field] = f"{fields[field]}, served by {path}"
        fields |= {"console": domain["console"], "pid": domain["pid"]}
        if operation is not None:
            fields["operation"] = f"{operation['kind']} {_operation(operation)}"
            fields["migration"] = operation["migration"]
            fields["progress"] = f"{operation['percent']:.0f} %"
        print_fields(domain["name"], fields)


def print_parseable(domains: Sequence[Document], *, status: bool) -> None:
    click.echo("VERSION 1.0")
    for domain in domains:
        operation = domain["operation"]
        if status:
            values = (
                {}
                if operation is None
                else {
                    "op": operation["kind"],
                    "role": operation["role"],
                    "peer": operation["peer"],
                    "phase": operation["phase"],
                    "progress": f"{operation['percent']:.0f}",
                    "rate": f"{operation['rate_bytes_per_second'] or 0:.0f}",
                    "in-doubt": "yes" if operation["in_doubt"] else "no",
                    "migration": operation["migration"],
                    "position": operation["position"],
                }
            )
            print_record("DOMAIN", {"name": domain["name"]})
            print_record("STATUS", values)
        else:
            print_record(
                "DOMAIN",
                {
                    "name": domain["name"],
                    "state": domain["state"],
                    "run-state": domain["run_state"],
                    "cons": domain["console"],
                    "ncpu": domain["vcpus"],
                    "mem": domain["memory_bytes"],
                    "uuid": domain["uuid"],
                    "hypervisor": domain["hypervisor"],
                    "machine": domain["machine"],
                    "pid": domain["pid"],
                    "op": operation["kind"] if operation else None,
                    "reconf-pending": "yes" if domain.get("reconfiguration_pending") else "no",
                },
            )


def print_record(kind: str, values: Mapping[str, object]) -> None:
    click.echo("|".join([kind, *(f"{k}={_escape(v)}" for k, v in values.items())]))


def _escape(value: object) -> str:
    octets = ("" if value is None else str(value)).encode()
    return "".join(chr(b) if b in SAFE else f"%{b:02X}" for b in octets)


# ---- migrations and the manager --------------------------------------------------------------


def print_migrations(migrations: Sequence[Document]) -> None:
    rows = [
        (
            m["domain"],
            m["migration"][:12],
            m["role"],
            m["peer"],
            DECISIONS.get(m["decision"], m["decision"]),
            "yes" if m["settled"] else "no",
            show_time(m["records"][-1]["time_unix_ms"]) if m["records"] else NOTHING,
        )
        for m in migrations
    ]
    header = ("DOMAIN", "MIGRATION", "ROLE", "PEER", "DECISION", "SETTLED", "LAST RECORD")
    print_table(header, rows)


PREFIXES: Final = {"meaning": "", "remedy": "what to do: ", "sentence": "last seen: "}


def print_wrapped(text: str, *, indent: int = 4) -> None:
    """Two blanks before the first line, ``indent`` before the others; as wide as the terminal, 80 columns without one."""
    width = min(shutil.get_terminal_size().columns, 100) - 1
    lines = textwrap.wrap(
        text,
        width,
        initial_indent="  ",
        subsequent_indent=" " * indent,
        break_long_words=False,
        replace_whitespace=False,
    )
    click.echo("\n".join(lines))


def print_migration(migration: Document) -> None:
    print_fields(
        f"{migration['domain']}  {migration['migration']}",
        {
            "role": migration["role"],
            "peer": migration["peer"],
            "decision": DECISIONS.get(migration["decision"], migration["decision"]),
            "settled": "yes" if migration["settled"] else "no",
            "state": migration["state"],
        },
    )
    said = ["meaning", "remedy", "sentence"]
    if migration["settled"]:  # the records say why, and mostly nothing is to be done
        said = (
            ["meaning"] if "nothing is to be done" in migration["remedy"] else ["meaning", "remedy"]
        )
    for words in said:
        if migration[words]:
            print_wrapped(PREFIXES[words] + migration[words])
    for record in migration["records"]:
        line = f"{show_time(record['time_unix_ms'])}  {record['kind']:<9}  {record['sentence']}"
        print_wrapped(line.rstrip(), indent=34)


def print_manager(status: Document) -> None:
    def share(free: int, total: int, show: Any) -> str:
        return f"{show(free)} of {show(total)} free"

    print_fields(
        f"{status['host']}  ldmd {status['release']}",
        {
            "pid": status["pid"],
            "port": status["port"],
            "journal": status.get("journal"),
            "hypervisors": ", ".join(status.get("hypervisors", ())) or None,
            "memory": share(status["memory_free_bytes"], status["memory_bytes"], show_bytes),
            "vcpus": share(status["vcpus_free"], status["vcpus"], str),
            "domains": status.get("domains"),
            "migrations": _count_migrations(status),
        },
    )
    if status["peers"]:
        click.echo()
        rows = [
            (
                peer["name"],
                peer["address"] or NOTHING,
                "yes" if peer["may_send"] else "no",
                "yes" if peer["may_receive"] else "no",
            )
            for peer in status["peers"]
        ]
        print_table(("PEER", "ADDRESS", "MAY SEND", "MAY RECEIVE"), rows)


def _count_migrations(status: Document) -> str:
    queued = f", and {status['queued']} queued" if status["queued"] else ""
    return f"{status['migrations']} under way{queued}"


FINDING_INDENT: Final = 10


def render_findings(findings: Sequence[Document]) -> Iterator[str]:
    """A line for each, and one for its remedy; wrapped on a terminal, whole in a pipe."""
    for finding in findings:
        weight = "failed" if finding["hard"] else "note"
        sentence = f"{finding['code']} ({finding['subject']}): {finding['sentence']}"
        yield wrap(f"  {weight:<6}  {sentence}", stream=sys.stdout, indent=FINDING_INDENT)
        if finding["remedy"]:
            remedy = f"{'':{FINDING_INDENT}}{finding['remedy']}"
            yield wrap(remedy, stream=sys.stdout, indent=FINDING_INDENT)


def print_findings(findings: Sequence[Document]) -> None:
    for line in render_findings(findings):
        click.echo(line)


def print_parseable_check(
    order: Mapping[str, object], findings: Sequence[Document], result: str
) -> None:
    """``MIGRATION`` with what was asked and what came of it, then a ``FINDING`` for each."""
    click.echo("VERSION 1.0")
    print_record("MIGRATION", {**order, "result": result})
    for finding in findings:
        print_record(
            "FINDING",
            {
                "code": finding["code"],
                "weight": "hard" if finding["hard"] else "soft",
                "subject": finding["subject"],
                "sentence": finding["sentence"],
                "remedy": finding["remedy"],
            },
        )


def print_moved(result: Document) -> None:
    """The end of a migration: where the domain is, and what it took."""
    fields: dict[str, object] = {
        phase: f"{seconds:.3f} s" for phase, seconds in result["phases"].items()
    }
    if result["bytes"]:
        fields["moved"] = show_bytes(result["bytes"])
    if result["digest_source"] is not None:
        same = result["digest_source"] == result["digest_target"]
        fields["digest"] = f"{result['digest_source']}, {'equal' if same else 'DIFFERS'} there"
    if result["downtime_ms"] is not None:
        fields["downtime"] = f"{result['downtime_ms']:.0f} ms"
    print_fields(where_it_is(result), fields)


def where_it_is(result: Document) -> str:
    running = result["running_on"]
    return f"{result['domain']} runs on {running}" if running else f"{result['domain']} has moved"
