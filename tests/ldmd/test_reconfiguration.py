"""Another definition for a domain: at once or when its process has ended, and never half."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from ldmd import edits
from ldmd.config import Config
from ldmd.definition import DomainDefinition, VirtualDisk, VirtualNetwork
from ldmd.description import Change
from ldmd.domains import Domain, Domains
from ldmd.edits import Edit
from ldmd.errors import (
    Busy,
    DefinitionError,
    HypervisorError,
    JournalError,
    LdmdError,
    NotFound,
    WrongState,
)
from ldmd.hypervisor.emulated import EmulatedHypervisor
from ldmd.journal.records import DomainEntry, DomainState
from ldmd.journal.witness import Witness
from ldmd.reconfiguration import WHEN, Outcome, When, cancel, differing, plan, reconfigure
from protocol.phases import RunState
from tests.ldmd.host import MIB, configure, define, end_processes, open_domains

INACTIVE, BOUND, ACTIVE = DomainState
DISK = VirtualDisk(name="d0", volume="disk", service="vds0")
NET = VirtualNetwork(name="n0", switch="vsw0", mac="52:54:00:00:00:01")


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Config]:
    (tmp_path / "disk").write_bytes(b"")
    made = configure(
        tmp_path,
        hypervisors={"enabled": ["emulated"]},
        vds={"vds0": {"disk": str(tmp_path / "disk")}},
        vsw={"vsw0": {"bridge": "lo"}},
    )
    yield made
    await end_processes(made)


@pytest.fixture
async def domains(host: Config) -> AsyncIterator[Domains]:
    async with open_domains(host) as made:
        yield made


async def make(domains: Domains, state: DomainState, name: str = "ldg1", **more: Any) -> Domain:
    domain = await domains.add(define(name, **more))
    if state is not INACTIVE:
        await domains.bind(domain)
    if state is ACTIVE:
        await domains.start(domain)
    return domain


async def change(domains: Domains, edit: Edit, name: str = "ldg1") -> Outcome:
    """As an operator does it."""
    async with domains.operation(name) as domain:
        return await reconfigure(domains, domain, edit)


def put(**fields: Any) -> Edit:
    return lambda definition: attrs.evolve(definition, **fields)


async def recorded(domains: Domains, domain: Domain) -> DomainEntry:
    """What the journal has; it is always what the table of domains has."""
    for entry in await domains.journal.load_domains():
        if entry.definition.uuid == domain.definition.uuid:
            assert (entry.definition, entry.pending) == (domain.definition, domain.pending)
            assert entry.state is domain.state
            return entry
    raise AssertionError("it is gone")


# ---- when ------------------------------------------------------------------------------------------------

NEW: dict[str, Any] = {
    "version": 1,
    "uuid": "00000000-0000-4000-8000-000000000000",
    "name": "other",
    "hypervisor": "qemu",
    "machine": "riscv64-virt",
    "firmware": "oracle",
    "mig_allowed": False,
    "vcpus": 2,
    "memory_bytes": 4 * MIB,
    "huge_pages": "2MiB",
    "cpu_arch": "native",
    "optional_devices": ("rng",),
    "vdisks": (DISK,),
    "vnets": (NET,),
    "variables": (("clock-mhz", "2"),),
}
"""Another value of each; those of which the emulated hypervisor has but one are left as they are."""


def test_every_field_has_its_time() -> None:
    assert set(WHEN) == set(NEW) == {a.name for a in attrs.fields(DomainDefinition)}


@pytest.mark.parametrize("name", sorted(set(NEW) - {"version", "machine", "firmware"}))
@pytest.mark.parametrize("state", list(DomainState))
async def test_every_field_in_every_state(state: DomainState, name: str, domains: Domains) -> None:
    domain = await make(domains, state)
    before, process = domain.definition, domain.process
    wanted = attrs.evolve(before, **{name: NEW[name]})
    when = WHEN[name]
    allowed = {
        When.AT_ONCE: True,
        When.DELAYED: True,
        When.NOT_ACTIVE: state is not ACTIVE,
        When.INACTIVE: state is INACTIVE,
        When.NEVER: False,
    }[when]
    if not allowed:
        error = DefinitionError if when is When.NEVER else WrongState
        with pytest.raises(error) as caught:
            await change(domains, put(**{name: NEW[name]}))
        if error is WrongState:
            assert (
                caught.value.remedy
                == f"`ldm {'stop' if state is ACTIVE else 'unbind'}-domain ldg1` first"
            )
        assert (domain.definition, domain.pending) == (before, None)
        await recorded(domains, domain)
        return
    outcome = await change(domains, put(**{name: NEW[name]}))
    delayed = state is ACTIVE and when is When.DELAYED
    assert len(outcome.changes) == 1
    assert outcome.pending == (outcome.changes if delayed else ())
    assert (domain.definition, domain.pending) == ((before, wanted) if delayed else (wanted, None))
    await recorded(domains, domain)
    assert domain.process is process
    if state is ACTIVE:
        assert await domain.run_state() is RunState.RUNNING
        await domains.stop(domain)
        assert (domain.definition, domain.pending, domain.state) == (wanted, None, BOUND)
        await recorded(domains, domain)
    free = 64 * MIB - (domain.definition.memory_bytes if domain.state is not INACTIVE else 0)
    assert domains.inventory.memory_free_bytes == free


async def test_what_is_changed_back_is_not_pending(domains: Domains) -> None:
    domain = await make(domains, ACTIVE)
    await change(domains, put(vcpus=2, memory_bytes=4 * MIB))
    first = await change(domains, put(vcpus=1))
    assert [c.what for c in first.pending] == ["memory"]
    second = await change(domains, put(memory_bytes=2 * MIB, mig_allowed=False))
    assert second.changes == (
        Change(what="memory", before="4MiB", after="2MiB"),
        Change(what="mig-allowed", before="yes", after="no"),
    )
    assert second.pending == ()
    assert (domain.pending, domain.definition.mig_allowed) == (None, False)
    await recorded(domains, domain)


async def test_at_once_and_delayed_in_one(domains: Domains) -> None:
    domain = await make(domains, ACTIVE)
    outcome = await change(domains, put(mig_allowed=False, vcpus=3))
    assert [c.what for c in outcome.pending] == ["vcpus"]
    assert (domain.definition.mig_allowed, domain.definition.vcpus) == (False, 1)
    assert domain.pending is not None
    assert (domain.pending.mig_allowed, domain.pending.vcpus) == (False, 3)
    # and what is changed at once later is not undone by what was pending before
    await change(domains, put(mig_allowed=True))
    await domains.stop(domain)
    assert (domain.definition.mig_allowed, domain.definition.vcpus) == (True, 3)


async def test_nothing_is_written_where_nothing_changes(domains: Domains) -> None:
    await make(domains, ACTIVE)
    writes: list[str] = []

    async def write(*_: object) -> None:
        writes.append("wrote")

    domains.journal._write = write  # type: ignore[method-assign]
    assert await change(domains, put(vcpus=1)) == Outcome(changes=(), pending=())
    assert writes == []


# ---- when the process has ended --------------------------------------------------------------------------


async def end_by_stopping(domains: Domains, domain: Domain) -> None:
    await domains.stop(domain)


async def end_by_itself(domains: Domains, domain: Domain) -> None:
    assert domain.process is not None
    os.kill(domain.process.pid, signal.SIGKILL)
    with trio.fail_after(10):
        while domain.state is ACTIVE:
            await domains.reap()
            await trio.sleep(0.01)


@pytest.mark.parametrize("end", [end_by_stopping, end_by_itself])
async def test_however_it_ended(end: Callable[..., Any], domains: Domains) -> None:
    domain = await make(domains, ACTIVE)
    wanted = attrs.evolve(domain.definition, memory_bytes=6 * MIB, variables=(("clock-mhz", "2"),))
    await change(domains, lambda _: wanted)
    await end(domains, domain)
    assert (domain.definition, domain.pending, domain.state) == (wanted, None, BOUND)
    await recorded(domains, domain)
    assert domains.inventory.memory_free_bytes == 58 * MIB
    await domains.start(domain)
    assert domain.process is not None
    assert sum(region.size_bytes for region in domain.process.regions) == 6 * MIB


async def test_a_manager_that_starts_again_knows_it(host: Config) -> None:
    async with open_domains(host) as domains:
        domain = await make(domains, ACTIVE)
        wanted = attrs.evolve(domain.definition, memory_bytes=6 * MIB)
        await change(domains, lambda _: wanted)
    async with open_domains(host) as domains:
        domain = domains.get("ldg1")
        assert (domain.state, domain.pending) == (ACTIVE, wanted)
        assert domains.inventory.memory_free_bytes == 58 * MIB, "its room is still held"
        assert domain.process is not None
        os.kill(domain.process.pid, signal.SIGKILL)
    # the process has ended, and the record of it was not written: whoever sees it writes it
    async with open_domains(host) as domains:
        domain = domains.get("ldg1")
        assert (domain.definition, domain.pending, domain.state) == (wanted, None, BOUND)
        await recorded(domains, domain)


async def test_a_journal_that_fails_when_the_process_has_ended_is_tried_again(
    domains: Domains, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain = await make(domains, ACTIVE)
    await change(domains, put(vcpus=2))
    write = domains.journal._write

    async def fail(*_: object) -> None:
        raise JournalError("the disk is away")

    monkeypatch.setattr(domains.journal, "_write", fail)
    with pytest.raises(JournalError):
        await domains.stop(domain)
    assert (domain.state, domain.definition.vcpus) == (ACTIVE, 1)
    assert domain.pending is not None
    assert domains.inventory.vcpus_free == 2
    monkeypatch.setattr(domains.journal, "_write", write)
    await domains.stop(domain)
    assert (domain.state, domain.definition.vcpus, domain.pending) == (BOUND, 2, None)
    await recorded(domains, domain)


async def test_a_start_that_fails_makes_nothing_of_what_was_there(domains: Domains) -> None:
    domain = await make(domains, BOUND)
    await change(domains, put(variables=(("clock-mhz", "never"),)))
    with pytest.raises(HypervisorError, match="clock-mhz"):
        await domains.start(domain)
    await change(domains, edits.remove_variables(["clock-mhz"]))
    await domains.start(domain)
    assert await domain.run_state() is RunState.RUNNING


# ---- taken back ------------------------------------------------------------------------------------------


async def test_taken_back(domains: Domains) -> None:
    domain = await make(domains, ACTIVE)
    with pytest.raises(WrongState, match=r"^ldg1 has no delayed reconfiguration pending$"):
        await cancel(domains, domain)
    await change(domains, put(vcpus=2, memory_bytes=8 * MIB, vnets=(NET,), mig_allowed=False))
    assert (domains.inventory.vcpus_free, domains.inventory.memory_free_bytes) == (2, 56 * MIB)
    changes = await cancel(domains, domain)
    assert [c.what for c in changes] == ["vcpus", "memory", "vnet n0"]
    assert (domain.pending, domain.definition.mig_allowed) == (None, False)
    assert (domains.inventory.vcpus_free, domains.inventory.memory_free_bytes) == (3, 62 * MIB)
    await recorded(domains, domain)
    await domains.add(define("other", vnets=(NET,)))  # its address is free again
    await domains.stop(domain)
    assert (domain.definition.vcpus, domain.definition.vnets) == (1, ())


# ---- room ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [BOUND, ACTIVE])
async def test_more_is_held_anew_or_refused(state: DomainState, domains: Domains) -> None:
    domain = await make(domains, state)
    await make(domains, BOUND, "other", memory_bytes=30 * MIB, vcpus=2)
    for fields, sentence in (
        ({"memory_bytes": 35 * MIB}, "ldg1 needs 35MiB of memory, 34MiB is free"),
        ({"vcpus": 3}, "ldg1 needs 3 of virtual CPUs, 2 is free"),
    ):
        with pytest.raises(Busy, match=sentence):
            await change(domains, put(**fields))
        assert domain.pending is None
        await recorded(domains, domain)
        assert domains.inventory.memory_free_bytes == 32 * MIB
    await change(domains, put(memory_bytes=34 * MIB, vcpus=2))
    assert (domains.inventory.memory_free_bytes, domains.inventory.vcpus_free) == (0, 0)
    with pytest.raises(Busy):
        await change(domains, edits.add_amount("memory-bytes", MIB), "other")


async def test_less_is_free_when_the_process_has_ended(domains: Domains) -> None:
    domain = await make(domains, ACTIVE, memory_bytes=8 * MIB)
    await change(domains, put(memory_bytes=2 * MIB))
    assert domains.inventory.memory_free_bytes == 56 * MIB
    await domains.stop(domain)
    assert domains.inventory.memory_free_bytes == 62 * MIB


async def test_an_inactive_domain_holds_nothing(domains: Domains) -> None:
    domain = await make(domains, INACTIVE)
    await change(
        domains,
        put(memory_bytes=1024 * MIB, vcpus=100, vdisks=(attrs.evolve(DISK, volume="none"),)),
    )
    assert (domains.inventory.memory_free_bytes, domains.inventory.vcpus_free) == (64 * MIB, 4)
    with pytest.raises(NotFound):
        await domains.bind(domain)


@pytest.mark.parametrize("state", list(DomainState))
@pytest.mark.parametrize(
    ("fields", "error", "sentence"),
    [
        ({"vdisks": (attrs.evolve(DISK, volume="none"),)}, NotFound, "no volume none@vds0"),
        ({"vdisks": (DISK,)}, Busy, "disk@vds0 is in use by other"),
        ({"vnets": (attrs.evolve(NET, switch="none"),)}, NotFound, "none"),
        ({"machine": "pc"}, WrongState, "has no machine type pc"),
        ({"firmware": "bios"}, WrongState, "has no firmware bios"),
    ],
    ids=str,
)
async def test_what_this_host_has_not(
    state: DomainState,
    fields: dict[str, Any],
    error: type[LdmdError],
    sentence: str,
    domains: Domains,
) -> None:
    domain = await make(domains, state)
    await make(domains, BOUND, "other", vdisks=(DISK,))
    if state is INACTIVE:
        await change(domains, put(**fields))  # as it may be added so
        return
    with pytest.raises(error, match=sentence):
        await change(domains, put(**fields))
    assert (domain.definition, domain.pending) == (domain.definition, None)
    await recorded(domains, domain)


async def test_what_is_pending_is_promised(domains: Domains) -> None:
    """Volume and address of it are not given to others meanwhile."""
    await make(domains, ACTIVE)
    await change(domains, put(vdisks=(DISK,), vnets=(NET,)))
    view = await domains.inventory.view(domains)
    assert view.macs == {NET.mac: "ldg1"}
    assert view.volumes_in_use == {("vds0", "disk"): "ldg1"}
    with pytest.raises(Busy, match="ldg1 has the MAC address"):
        await domains.add(define("other", vnets=(NET,)))
    other = await make(domains, INACTIVE, "other", vdisks=(DISK,))
    with pytest.raises(Busy, match="in use by ldg1"):
        await domains.bind(other)
    with pytest.raises(Busy, match="ldg1 has the MAC address"):
        await change(domains, put(vnets=(NET,)), "other")


# ---- at the same time ------------------------------------------------------------------------------------


async def together(*asks: Callable[[], Any]) -> list[LdmdError]:
    """All of them at once; what was refused."""
    refused: list[LdmdError] = []

    async def ask(one: Callable[[], Any]) -> None:
        try:
            await one()
        except LdmdError as error:
            refused.append(error)

    async with trio.open_nursery() as nursery:
        for one in asks:
            nursery.start_soon(ask, one)
    return refused


async def test_two_changes_of_one_domain_are_both_made(domains: Domains) -> None:
    domain = await make(domains, ACTIVE)
    refused = await together(
        *(lambda: change(domains, edits.add_amount("vcpus", 1)) for _ in range(3)),
        lambda: change(domains, edits.set_variables({"a": "1"})),
        lambda: change(domains, edits.set_variables({"b": "2"})),
    )
    assert refused == []
    assert domain.pending is not None
    assert (domain.pending.vcpus, domain.pending.variables) == (4, (("a", "1"), ("b", "2")))
    await recorded(domains, domain)


async def test_a_name_is_given_once(domains: Domains) -> None:
    first, second = await make(domains, INACTIVE, "one"), await make(domains, BOUND, "two")
    refused = await together(
        lambda: change(domains, edits.rename("new"), "one"),
        lambda: change(domains, edits.rename("new"), "two"),
        lambda: domains.add(define("new")),
    )
    assert [str(error) for error in refused] == ["there is already a domain new"] * 2
    assert [d.name for d in domains].count("new") == 1
    for domain in (first, second):
        await recorded(domains, domain)


async def test_room_is_given_once(domains: Domains) -> None:
    for name in ("one", "two", "three"):
        await make(domains, BOUND, name)
    refused = await together(
        *(
            lambda name=name: change(domains, edits.add_amount("memory-bytes", 40 * MIB), name)
            for name in ("one", "two", "three")
        ),
        lambda: change(domains, put(vnets=(NET,)), "one"),
        lambda: change(domains, put(vnets=(NET,)), "two"),
    )
    assert len(refused) == 3  # two of the room, one of the address
    assert all(isinstance(error, Busy) for error in refused)
    assert domains.inventory.memory_free_bytes == 18 * MIB


async def test_a_stop_and_a_change(domains: Domains) -> None:
    """Whichever is first: what was asked for is there in the end."""
    for _ in range(3):
        domain = await make(domains, ACTIVE)

        async def stop() -> None:
            async with domains.operation("ldg1") as held:
                await domains.stop(held)

        assert await together(stop, lambda: change(domains, put(vcpus=2))) == []
        assert (domain.state, domain.definition.vcpus, domain.pending) == (BOUND, 2, None)
        await recorded(domains, domain)
        await domains.unbind(domain)
        await domains.remove(domain)


@pytest.mark.parametrize("settling", [False, True])
async def test_a_migration_that_holds_it_is_not_interfered_with(
    settling: bool, domains: Domains
) -> None:
    domain = await make(domains, ACTIVE)
    domains.take(domain, "m" * 32)
    domain.settling = settling
    with pytest.raises(Busy, match="ldg1 is held by the migration"):
        await change(domains, put(mig_allowed=False))
    domains.let_go(domain.definition.uuid, "m" * 32)
    async with domains.operation("ldg1") as held, trio.open_nursery() as nursery:
        nursery.start_soon(reconfigure, domains, held, put(mig_allowed=False))
        await trio.lowlevel.checkpoint()
        with pytest.raises(Busy, match="another operation on ldg1 is under way"):
            domains.take(domain, "m" * 32)


# ---- what cannot be written ------------------------------------------------------------------------------


@pytest.mark.parametrize("state", list(DomainState))
async def test_what_cannot_be_written_is_not_so(
    state: DomainState, domains: Domains, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain = await make(domains, state)
    before = (domain.definition, domain.pending, domains.inventory.memory_free_bytes)
    seen: list[int] = []

    async def fail(*_: object) -> None:
        seen.append(domains.inventory.memory_free_bytes)
        raise JournalError("the disk is away")

    with monkeypatch.context() as patched:
        patched.setattr(domains.journal, "_write", fail)
        with pytest.raises(JournalError):
            await change(domains, put(memory_bytes=8 * MIB))
    assert (domain.definition, domain.pending, domains.inventory.memory_free_bytes) == before
    assert seen == [64 * MIB if state is INACTIVE else 56 * MIB], "held before it is written"
    await recorded(domains, domain)


AWAY = Witness(Path("/nonexistent/journal-count"))
"""Written behind the commit, if it can be."""


@pytest.mark.parametrize("state", list(DomainState))
async def test_what_is_on_disk_is_so_whatever_failed_behind_it(
    state: DomainState, domains: Domains, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain = await make(domains, state)
    with monkeypatch.context() as patched:
        patched.setattr(domains.journal, "_witness", AWAY)
        await change(domains, put(vcpus=2))
        assert (domain.pending or domain.definition).vcpus == 2
        assert (domain.pending is not None) == (state is ACTIVE)
        await recorded(domains, domain)
        if state is ACTIVE:
            assert domains.inventory.vcpus_free == 2, "it is held"
            assert [c.what for c in await cancel(domains, domain)] == ["vcpus"]
            assert domain.pending is None
            assert domains.inventory.vcpus_free == 3
    await recorded(domains, domain)


async def test_what_could_not_even_be_read_back_can_be_cancelled(
    domains: Domains, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain = await make(domains, ACTIVE)

    async def fail(*_: object) -> None:
        raise JournalError("the disk is away")

    with monkeypatch.context() as patched:
        patched.setattr(domains.journal, "_witness", AWAY)
        patched.setattr(domains.journal, "_read", fail)
        with pytest.raises(JournalError):
            await change(domains, put(vcpus=2))
        assert domain.pending is None
        with pytest.raises(JournalError):
            await cancel(domains, domain)
    assert [c.what for c in await cancel(domains, domain)] == ["vcpus"]
    assert (await recorded(domains, domain)).pending is None
    with pytest.raises(WrongState, match="pending"):
        await cancel(domains, domain)


# ---- in any order ----------------------------------------------------------------------------------------

EDITS = st.one_of(
    st.integers(1, 4).map(lambda n: edits.set_keys({"vcpus": n})),
    st.booleans().map(lambda yes: edits.set_keys({"mig-allowed": yes})),
    st.sampled_from(["1", "2"]).map(lambda text: edits.set_variables({"a": text})),
    st.sampled_from(["generic", "native"]).map(lambda arch: edits.set_keys({"cpu-arch": arch})),
)


@given(steps=st.lists(EDITS, max_size=8), ends=st.sets(st.integers(0, 8)))
@settings(max_examples=100, deadline=None)
def test_an_active_domain_ends_up_as_an_inactive_one(steps: list[Edit], ends: set[int]) -> None:
    """Whenever its process ends meanwhile, and is started again."""
    inactive = definition = define()
    pending: DomainDefinition | None = None
    for number, edit in enumerate(steps):
        inactive, nothing = plan(inactive, edit(inactive), INACTIVE)
        assert nothing is None
        definition, pending = plan(definition, edit(pending or definition), ACTIVE)
        assert pending != definition
        assert {WHEN[name] for name in differing(definition, pending or definition)} <= {
            When.DELAYED
        }
        if number in ends:
            definition, pending = pending or definition, None
    assert (pending or definition) == inactive


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"vcpus": 2}, "has one vcpu, not 2"),
        ({"cpu_arch": "nosuch"}, "has no CPU nosuch"),
        ({"huge_pages": "2MiB"}, "has no huge pages"),
        ({"vdisks": (DISK,)}, "has no vdisks and no vnets; the domain has d0"),
    ],
    ids=str,
)
async def test_what_no_domain_here_can_be_made_of(
    host: Config, fields: dict[str, Any], why: str
) -> None:
    """It would not start when its time comes."""
    async with open_domains(host, {"emulated": EmulatedHypervisor()}) as domains:
        domain = await make(domains, ACTIVE)
        with pytest.raises(WrongState, match=why):
            await change(domains, put(**fields))
        assert domain.pending is None
