"""The daemon: one nursery tree, and the order in which it comes up and goes down.

Up: journal (which locks out a second manager), domains adopted, listener open, open migrations going on, control socket,
READY. Down: no new links, no new verbs; migrations that may still be given up are, the others are left to their records;
then everything is cancelled. Domains are processes of their own: they go on.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import click
import trio

from ldmd import __version__
from ldmd.config import PATH_DEFAULT, Config, load
from ldmd.control import Verb, serve_control
from ldmd.control_socket import find_group, open_control_socket
from ldmd.domains import Domains
from ldmd.errors import ConfigurationError, JournalError, LdmdError
from ldmd.fault_verbs import FaultVerbs
from ldmd.faults import Faults
from ldmd.history import History
from ldmd.host import Host
from ldmd.hypervisor.driver import Hypervisor
from ldmd.hypervisor.emulated import EmulatedHypervisor
from ldmd.hypervisor.qemu import QemuHypervisor
from ldmd.inventory import Inventory
from ldmd.journal.records import Side
from ldmd.journal.store import Journal
from ldmd.link.listener import open_listeners, serve_links
from ldmd.link.pump import build_refusal
from ldmd.link.tls import TlsFiles
from ldmd.operations import Operations
from ldmd.reception import Reception
from ldmd.recovery import recover
from ldmd.registry import Registry
from ldmd.service import notify
from ldmd.trace import NAME as TRACE_NAME
from ldmd.trace import Trace
from protocol.events import Event
from protocol.machine import Decision

log = logging.getLogger("ldmd")

STOP_SECONDS: Final = 10.0
"""How long stopping waits for migrations to be given up or decided; what is open then is recovered at the next start."""

POSITION_NAME: Final = "journal.position"

LOOK_SECONDS: Final = 1.0

OUR_PACKAGES: Final = ("ldmd", "protocol", "certs")


def make_hypervisors(config: Config) -> dict[str, Hypervisor]:
    makers: dict[str, Callable[[], Hypervisor]] = {
        "emulated": EmulatedHypervisor,
        "qemu": lambda: QemuHypervisor(accelerator=config.hypervisors.qemu.accelerator),
    }
    return {kind: makers[kind]() for kind in config.hypervisors.enabled}


def require_own_packages() -> None:
    """Packages of these import names exist elsewhere. Raises ConfigurationError when one is installed beside us."""
    owners = importlib.metadata.packages_distributions()
    for name in OUR_PACKAGES:
        others = {owner for owner in owners.get(name, []) if owner != "ldmd"}
        if others:
            raise ConfigurationError(
                f"the package {name} here belongs to {', '.join(sorted(others))} too",
                remedy="install ldmd in a virtual environment of its own",
            )


def make_private_directory(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be made: {error.strerror}") from error


async def serve(config: Config) -> None:
    """Run until SIGTERM or SIGINT. Raises LdmdError when it cannot start."""
    for directory in (config.host.state_directory, config.host.run_directory):
        make_private_directory(directory)
    journal = await Journal.open(
        config.host.state_directory / "journal.sqlite",
        config.host.run_directory / POSITION_NAME,
    )
    try:
        await _serve(config, journal)
    finally:
        with trio.CancelScope(shield=True):
            await journal.aclose()


async def _serve(config: Config, journal: Journal) -> None:
    hypervisors = make_hypervisors(config)
    inventory = Inventory(config, hypervisors)
    domains = Domains(journal, inventory, hypervisors, config.host.run_directory / "domains")
    host = Host(
        config=config,
        journal=journal,
        inventory=inventory,
        hypervisors=hypervisors,
        domains=domains,
        faults=Faults(allowed=config.faults.allowed, armed=config.faults.armed),
        trace=Trace(config.host.run_directory / TRACE_NAME if config.faults.trace else None),
        tls_files=TlsFiles(
            certificate=config.identity.certificate,
            key=config.identity.key,
            authorities=config.identity.authorities,
        ),
    )
    group = find_group(config.host.control_group)
    with open_control_socket(config.host.control_socket, group=group) as control:
        await domains.load()
        listeners = await open_listeners(config.listen.address, config.listen.port)
        port = listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as migrations, trio.open_nursery() as front:
            registry = Registry(migrations)
            recovered = await recover(host, registry)
            reception = Reception(host, registry)
            verbs = {
                **Operations(host, registry, port).verbs(),
                **History(host, registry).verbs(),
                **FaultVerbs(host.faults).verbs(),
            }
            # links outlast the listener: a migration that is being decided must be able to end
            await front.start(_serve_links, listeners, host, reception, migrations)
            await front.start(_serve_control, control, verbs, group)
            front.start_soon(_look_after, domains)
            log.info(
                "%s %s: listening on port %d, %d domains, %d open migrations",
                config.host.name,
                __version__,
                port,
                len(list(domains)),
                recovered,
            )
            await _wait_stop(
                lambda: notify(
                    "READY=1", f"STATUS=listening on port {port}, {recovered} migrations recovered"
                )
            )
            notify("STOPPING=1", "STATUS=stopping")
            front.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await _settle_down(registry)
            migrations.cancel_scope.cancel()
        await domains.aclose()


async def _serve_links(
    listeners: list[trio.SocketListener],
    host: Host,
    reception: Reception,
    links: trio.Nursery,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    await serve_links(
        listeners,
        host.tls_files,
        lambda: host.config.peers.values(),
        reception.serve,
        refusal=lambda error: build_refusal(error.sentence),
        handler_nursery=links,
        task_status=task_status,
    )


async def _serve_control(
    control: trio.socket.SocketType,
    verbs: Mapping[str, Verb],
    group: int,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    await serve_control(control, verbs, allowed_group=group, task_status=task_status)


async def _look_after(domains: Domains) -> None:
    while True:
        await trio.sleep(LOOK_SECONDS)
        try:
            await domains.reap()
            domains.trim_consoles()
        except JournalError as error:
            log.error("a domain that has ended cannot be recorded as bound: %s", error)
        except OSError as error:  # out of descriptors: it is looked again
            log.error("this host's domains cannot be looked after: %s", error)


async def _wait_stop(say_ready: Callable[[], None]) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        say_ready()  # who hears it may send a signal at once
        async for number in signals:
            log.info("%s: stopping", signal.Signals(number).name)
            return


async def _settle_down(registry: Registry) -> None:
    open_ones = list(registry)
    for migration in open_ones:
        if migration.decision is Decision.OPEN:
            migration.post(Event.CANCEL_ASKED)
    with trio.move_on_after(STOP_SECONDS):
        for migration in open_ones:
            decided = migration.decision in (Decision.TARGET, Decision.LOST)
            doubtful = migration.side is Side.SOURCE and migration.decision is Decision.IN_DOUBT
            waits_for_peer = migration.link is None and (decided or doubtful)
            if not (waits_for_peer or migration.confirming):
                await migration.ended.wait()


@click.command()
@click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path),
    default=PATH_DEFAULT,
    show_default=True,
    help="The configuration file.",
)
@click.option(
    "--check", is_flag=True, help="Read the configuration, say what is wrong with it, and end."
)
@click.version_option(__version__, prog_name="ldmd")
def main(path: Path, check: bool) -> None:
    """The logical domains manager of this host."""
    try:
        config = load(path)
        if check:
            click.echo(f"{path}: all right")
            return
        require_own_packages()
        logging.basicConfig(
            level=config.log.level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
        )
        os.umask(0o077)
        trio.run(serve, config)
    except* LdmdError as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        assert isinstance(error, LdmdError)
        click.echo(f"ldmd: {error.sentence}", err=True)
        if error.remedy:
            click.echo(f"  {error.remedy}", err=True)
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
