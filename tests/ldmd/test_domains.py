"""Domains as a manager has them: real journal, real processes of the emulated hypervisor."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from ldmd.config import Config
from ldmd.definition import VirtualDisk, VirtualNetwork
from ldmd.domains import Domain, Domains, require_takeable
from ldmd.errors import Busy, HypervisorError, LdmdError, NotFound, OutcomeUnknown, WrongState
from ldmd.hypervisor.driver import RunStatus
from ldmd.journal.records import DomainEntry, DomainState, MigrationEntry, Side
from ldmd.journal.store import Journal
from protocol.actions import RecordKind
from protocol.phases import RunState
from tests.ldmd.host import MIB, configure, define, end_processes, open_domains
from tests.ldmd.hypervisor.rig import processes_in

VERBS = ("remove", "bind", "unbind", "start", "stop", "suspend", "resume")
PATH_TO: dict[DomainState, tuple[str, ...]] = {
    DomainState.INACTIVE: (),
    DomainState.BOUND: ("bind",),
    DomainState.ACTIVE: ("bind", "start"),
}


@pytest.fixture
async def settings(tmp_path: Path) -> AsyncIterator[Config]:
    made = configure(tmp_path, hypervisors={"enabled": ["emulated"]})
    yield made
    await end_processes(made)


@pytest.fixture
async def domains(settings: Config) -> AsyncIterator[Domains]:
    async with open_domains(settings) as made:
        yield made


async def do(domains: Domains, verb: str, domain: Domain) -> None:
    action: Callable[[Domain], Awaitable[None]] = getattr(domains, verb)
    await action(domain)


async def make(domains: Domains, state: DomainState, name: str = "ldg1", **more: Any) -> Domain:
    domain = await domains.add(define(name, **more))
    for verb in PATH_TO[state]:
        await do(domains, verb, domain)
    return domain


async def recorded_state(domains: Domains, domain: Domain) -> DomainState | None:
    for entry in await domains.journal.load_domains():
        if entry.definition.uuid == domain.definition.uuid:
            return entry.state
    return None


async def wait_until(condition: Callable[[], Awaitable[bool]]) -> None:
    with trio.fail_after(10):
        while not await condition():
            await trio.sleep(0.01)


# ---- verbs -----------------------------------------------------------------------------------------------

RIGHT = {
    (DomainState.INACTIVE, "remove"): None,
    (DomainState.INACTIVE, "bind"): DomainState.BOUND,
    (DomainState.BOUND, "unbind"): DomainState.INACTIVE,
    (DomainState.BOUND, "start"): DomainState.ACTIVE,
    (DomainState.ACTIVE, "stop"): DomainState.BOUND,
    (DomainState.ACTIVE, "suspend"): DomainState.ACTIVE,
    (DomainState.ACTIVE, "resume"): DomainState.ACTIVE,
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("state", list(DomainState))
async def test_every_verb_in_every_state(state: DomainState, verb: str, domains: Domains) -> None:
    domain = await make(domains, state)
    directory = domains.directory_of(domain.definition.uuid)
    running = processes_in(directory)
    assert bool(running) == (state is DomainState.ACTIVE)
    if (state, verb) in RIGHT:
        await do(domains, verb, domain)
        wanted = RIGHT[state, verb]
        assert await recorded_state(domains, domain) is wanted
        assert wanted is None or domain.state is wanted
        held = 2 * MIB if wanted in (DomainState.BOUND, DomainState.ACTIVE) else 0
        assert domains.inventory.memory_free_bytes == 64 * MIB - held
        assert bool(processes_in(directory)) == (wanted is DomainState.ACTIVE)
        return
    with pytest.raises(WrongState, match=f"^ldg1 is {state}; only an? .* domain can be") as caught:
        await do(domains, verb, domain)
    assert caught.value.remedy.startswith("`ldm ")
    assert await recorded_state(domains, domain) is domain.state is state
    assert processes_in(directory) == running


@pytest.mark.parametrize("state", list(DomainState))
async def test_the_remedy_of_a_wrong_verb_is_a_right_one(
    state: DomainState, domains: Domains
) -> None:
    """What an error tells an operator to do first can be done in that state."""
    domain = await make(domains, state)
    for verb in VERBS:
        if (state, verb) in RIGHT:
            continue
        with pytest.raises(WrongState) as caught:
            await do(domains, verb, domain)
        first = caught.value.remedy.removeprefix("`ldm ").partition("-domain")[0]
        assert (state, first) in RIGHT, f"{verb} of a domain that is {state}: {caught.value.remedy}"


async def test_suspend_and_resume_change_what_runs(domains: Domains) -> None:
    domain = await make(domains, DomainState.ACTIVE)
    assert await domain.run_state() is RunState.RUNNING
    for _ in range(2):
        await domains.suspend(domain)
        assert await domain.run_state() is RunState.SUSPENDED
    for _ in range(2):
        await domains.resume(domain)
        assert await domain.run_state() is RunState.RUNNING
    await domains.stop(domain)
    assert await domain.run_state() is RunState.BOUND
    await domains.unbind(domain)
    assert await domain.run_state() is RunState.INACTIVE


async def test_what_is_taken_is_not_given_twice(domains: Domains) -> None:
    net = VirtualNetwork(name="n0", switch="vsw0", mac="52:54:00:00:00:01")
    first = await domains.add(define("one", vnets=(net,)))
    for definition, sentence in (
        (define("one"), "there is already a domain one"),
        (
            define("two", uuid=first.definition.uuid),
            f"there is already a domain with the uuid {first.definition.uuid}",
        ),
        (define("two", vnets=(net,)), f"one has the MAC address {net.mac}"),
    ):
        with pytest.raises(Busy, match=sentence):
            await domains.add(definition)
    assert [d.name for d in domains] == ["one"]
    assert domains.get("one") is domains.get(first.definition.uuid) is first
    with pytest.raises(NotFound, match="there is no domain two"):
        domains.get("two")


async def test_no_more_domains_than_allowed(tmp_path: Path) -> None:
    settings = configure(tmp_path, resources={"memory": "64MiB", "vcpus": 4, "domains-max": 1})
    async with open_domains(settings) as domains:
        await domains.add(define("one"))
        with pytest.raises(Busy, match="as many domains as"):
            await domains.add(define("two"))


@pytest.mark.parametrize(
    ("more", "error", "sentence"),
    [
        ({"machine": "pc"}, WrongState, "has no machine type pc"),
        ({"firmware": "bios"}, WrongState, "has no firmware bios"),
        ({"hypervisor": "qemu"}, HypervisorError, "qemu is not enabled"),
        ({"memory_bytes": 65 * MIB}, Busy, "65MiB of memory, 64MiB is free"),
        ({"vcpus": 5}, Busy, "5 of virtual CPUs, 4 is free"),
        (
            {"vdisks": (VirtualDisk(name="d", volume="v", service="s"),)},
            NotFound,
            "there is no volume v@s",
        ),
    ],
)
async def test_what_cannot_be_bound_stays_inactive(
    more: dict[str, Any], error: type[LdmdError], sentence: str, domains: Domains
) -> None:
    domain = await domains.add(define(**more))
    with pytest.raises(error, match=sentence):
        await domains.bind(domain)
    assert await recorded_state(domains, domain) is domain.state is DomainState.INACTIVE
    assert domains.inventory.memory_free_bytes == 64 * MIB


async def test_a_volume_is_written_by_one_domain(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"")
    settings = configure(tmp_path, vds={"vds0": {"disk": str(tmp_path / "disk")}})
    disk = VirtualDisk(name="d0", volume="disk", service="vds0")
    async with open_domains(settings) as domains:
        await make(domains, DomainState.BOUND, "writer", vdisks=(disk,))
        second = await make(domains, DomainState.INACTIVE, "second", vdisks=(disk,))
        with pytest.raises(Busy, match="the volume disk@vds0 is in use by writer"):
            await domains.bind(second)
        await domains.unbind(domains.get("writer"))
        await domains.bind(second)


# ---- starting that goes wrong ----------------------------------------------------------------------------


async def test_a_start_that_fails_leaves_nothing(domains: Domains) -> None:
    domain = await make(domains, DomainState.BOUND, variables=(("clock-mhz", "never"),))
    with pytest.raises(HypervisorError, match="clock-mhz"):
        await domains.start(domain)
    assert await recorded_state(domains, domain) is domain.state is DomainState.BOUND
    assert domain.process is None
    assert not domains.directory_of(domain.definition.uuid).exists()
    await domains.unbind(domain)


async def test_a_run_directory_that_cannot_be_made(domains: Domains) -> None:
    domain = await make(domains, DomainState.BOUND)
    domains.run_directory.parent.mkdir(parents=True, exist_ok=True)
    domains.run_directory.write_text("a file where the folder should be")
    with pytest.raises(HypervisorError, match="the run directory of ldg1 cannot be made"):
        await domains.start(domain)
    assert await recorded_state(domains, domain) is domain.state is DomainState.BOUND
    domains.run_directory.unlink()
    await domains.start(domain)
    assert await domain.run_state() is RunState.RUNNING


async def test_a_bound_domain_whose_hypervisor_is_not_enabled_any_more(settings: Config) -> None:
    async with open_domains(settings) as domains:
        await make(domains, DomainState.BOUND)
    async with open_domains(settings, {}) as domains:
        domain = domains.get("ldg1")
        with pytest.raises(HypervisorError, match="the hypervisor emulated is not enabled"):
            await domains.start(domain)
        assert await recorded_state(domains, domain) is domain.state is DomainState.BOUND


async def test_a_cancelled_start_is_found_again(domains: Domains) -> None:
    """Never a process that the table of domains does not know."""
    domain = await make(domains, DomainState.BOUND)
    with trio.move_on_after(0.05):
        await domains.start(domain)
    assert domain.state is DomainState.ACTIVE
    await domains.stop(domain)
    assert processes_in(domains.directory_of(domain.definition.uuid)) == []


# ---- ending ----------------------------------------------------------------------------------------------


async def test_a_stopped_process_can_be_stopped(domains: Domains) -> None:
    """SIGSTOP: it answers nothing, and pulling the plug needs no answer."""
    domain = await make(domains, DomainState.ACTIVE)
    assert domain.process is not None
    os.kill(domain.process.pid, signal.SIGSTOP)
    await domains.stop(domain)
    assert await recorded_state(domains, domain) is domain.state is DomainState.BOUND
    assert processes_in(domains.directory_of(domain.definition.uuid)) == []
    assert not domains.directory_of(domain.definition.uuid).exists()


async def test_a_process_that_ended_by_itself_makes_its_domain_bound(domains: Domains) -> None:
    domain = await make(domains, DomainState.ACTIVE)
    other = await make(domains, DomainState.ACTIVE, "other")
    assert domain.process is not None
    os.kill(domain.process.pid, signal.SIGKILL)

    async def reaped() -> bool:
        await domains.reap()
        return domain.state is DomainState.BOUND

    await wait_until(reaped)
    assert domain.process is None
    assert await recorded_state(domains, domain) is DomainState.BOUND
    assert not domains.directory_of(domain.definition.uuid).exists()
    assert await other.run_state() is RunState.RUNNING
    await domains.start(domain)
    assert await domain.run_state() is RunState.RUNNING


async def test_reaping_spares_a_domain_that_was_started_again_meanwhile(domains: Domains) -> None:
    """It is looked at without its lock: what was seen may be of an earlier process."""
    domain = await make(domains, DomainState.ACTIVE)
    earlier = domain.process
    assert earlier is not None
    await domains.stop(domain)
    await domains.start(domain)
    later, domain.process = domain.process, earlier

    def ended_and_started_again() -> bool:
        domain.process = later
        return True

    assert earlier.has_ended()
    earlier.has_ended = ended_and_started_again  # type: ignore[method-assign]
    await domains.reap()
    assert domain.process is later
    assert domain.state is DomainState.ACTIVE
    assert await domain.run_state() is RunState.RUNNING


async def test_reaping_waits_for_nobody(domains: Domains) -> None:
    """One that does not answer keeps no other from being found out, nor the manager busy."""
    stuck = await make(domains, DomainState.ACTIVE)
    ended = await make(domains, DomainState.ACTIVE, "other")
    assert stuck.process is not None
    assert ended.process is not None
    os.kill(stuck.process.pid, signal.SIGSTOP)
    os.kill(ended.process.pid, signal.SIGKILL)
    await wait_until(lambda: has_ended(ended))
    with trio.fail_after(1):
        await domains.reap()
    assert (stuck.state, ended.state) == (DomainState.ACTIVE, DomainState.BOUND)
    os.kill(stuck.process.pid, signal.SIGCONT)


async def has_ended(domain: Domain) -> bool:
    return domain.process is not None and domain.process.has_ended()


async def test_a_domain_that_ended_has_no_run_state(domains: Domains) -> None:
    domain = await make(domains, DomainState.ACTIVE)
    assert domain.process is not None
    os.kill(domain.process.pid, signal.SIGKILL)
    process = domain.process

    async def gone() -> bool:
        return await process.status() is RunStatus.GONE

    await wait_until(gone)
    with pytest.raises(WrongState, match="the process of ldg1 is gone") as caught:
        await domain.run_state()
    assert "stop-domain ldg1" in caught.value.remedy


async def test_destroying_leaves_nothing_and_may_be_repeated(domains: Domains) -> None:
    domain = await make(domains, DomainState.ACTIVE)
    for _ in range(2):
        await domains.destroy(domain)
        assert list(domains) == []
        assert await recorded_state(domains, domain) is None
        assert domains.inventory.memory_free_bytes == 64 * MIB
        assert processes_in(domains.directory_of(domain.definition.uuid)) == []


async def test_ending_the_process_alone(domains: Domains) -> None:
    domain = await make(domains, DomainState.ACTIVE)
    for _ in range(2):
        await domains.end(domain)
        assert await recorded_state(domains, domain) is domain.state is DomainState.BOUND
    assert domains.inventory.memory_free_bytes == 62 * MIB


# ---- who may touch it ------------------------------------------------------------------------------------


async def test_a_migration_holds_its_domain(domains: Domains) -> None:
    domain = await make(domains, DomainState.BOUND)
    domains.take(domain, "m1")
    with pytest.raises(Busy, match="ldg1 is held by the migration m1") as caught:
        domains.take(domain, "m2")
    assert "cancel-operation migration ldg1" in caught.value.remedy
    with pytest.raises(Busy, match="held by the migration m1"):
        async with domains.operation("ldg1"):
            raise AssertionError("not reached")
    domains.let_go(domain.definition.uuid, "m2")  # not the one that holds it
    domains.let_go(str(uuid.uuid4()), "m1")
    assert domain.migration == "m1"
    domains.let_go(domain.definition.uuid, "m1")
    async with domains.operation("ldg1") as found:
        assert found is domain


async def test_a_settling_domain_may_be_stopped_and_not_moved(domains: Domains) -> None:
    domain = await make(domains, DomainState.ACTIVE)
    domains.take(domain, "m1")
    with pytest.raises(Busy):
        async with domains.operation("ldg1", while_settling=True):
            raise AssertionError("not reached")
    domain.settling = True
    async with domains.operation("ldg1", while_settling=True) as found:
        await domains.stop(found)
    with pytest.raises(Busy):
        async with domains.operation("ldg1"):
            raise AssertionError("not reached")
    domains.let_go(domain.definition.uuid, "m1")
    assert domain.settling is False


async def test_two_verbs_wait_for_each_other_and_a_migration_does_not(domains: Domains) -> None:
    domain = await make(domains, DomainState.BOUND)
    inside, leave, order = trio.Event(), trio.Event(), []

    async def first() -> None:
        async with domains.operation("ldg1"):
            inside.set()
            await leave.wait()
            order.append("first")

    async def second() -> None:
        async with domains.operation("ldg1"):
            order.append("second")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(first)
        await inside.wait()
        nursery.start_soon(second)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Busy, match="another operation on ldg1 is under way"):
            domains.take(domain, "m1")
        with pytest.raises(Busy, match="another operation on ldg1 is under way"):
            require_takeable(domain)  # as a dry run asks, which takes nothing
        leave.set()
    assert order == ["first", "second"]
    domains.take(domain, "m1")


@pytest.mark.parametrize("begun", [True, False])
async def test_a_held_domain_is_not_reaped(begun: bool, domains: Domains) -> None:
    """What became of it is for the migration to find out, once it has begun."""
    domain = await make(domains, DomainState.ACTIVE)
    domains.take(domain, "m1")
    if begun:
        await domains.begin(domain)
    process = domain.process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)

    async def gone() -> bool:
        return await process.status() is RunStatus.GONE

    await wait_until(gone)
    await domains.reap()
    assert domain.state is (DomainState.ACTIVE if begun else DomainState.BOUND)
    domains.let_go(domain.definition.uuid, "m1")
    await domains.reap()
    assert domain.state is DomainState.BOUND


# ---- a manager that starts -------------------------------------------------------------------------------


async def test_domains_outlive_their_manager(settings: Config) -> None:
    async with open_domains(settings) as domains:
        running = await make(domains, DomainState.ACTIVE, "running")
        suspended = await make(domains, DomainState.ACTIVE, "suspended")
        await domains.suspend(suspended)
        await make(domains, DomainState.BOUND, "bound")
        await make(domains, DomainState.INACTIVE, "inactive")
        assert running.process is not None
        pid = running.process.pid
    async with open_domains(settings) as domains:
        found = {d.name: await d.run_state() for d in domains}
        assert found == {
            "running": RunState.RUNNING,
            "suspended": RunState.SUSPENDED,
            "bound": RunState.BOUND,
            "inactive": RunState.INACTIVE,
        }
        again = domains.get("running")
        assert again is not running
        assert again.process is not None
        assert again.process.pid == pid
        assert domains.inventory.memory_free_bytes == (64 - 3 * 2) * MIB
        await domains.stop(again)


async def test_one_that_ended_while_no_manager_ran_is_bound(settings: Config) -> None:
    async with open_domains(settings) as domains:
        domain = await make(domains, DomainState.ACTIVE)
        assert domain.process is not None
        os.kill(domain.process.pid, signal.SIGKILL)
    async with open_domains(settings) as domains:
        domain = domains.get("ldg1")
        assert await recorded_state(domains, domain) is domain.state is DomainState.BOUND
        assert not domains.directory_of(domain.definition.uuid).exists()
        await domains.start(domain)


async def test_one_that_does_not_answer_at_start_stays_active(settings: Config) -> None:
    """Not knowing is not knowing that it ended: taken for bound, it would be started a second time."""
    async with open_domains(settings) as domains:
        domain = await make(domains, DomainState.ACTIVE)
        assert domain.process is not None
        pid = domain.process.pid
    os.kill(pid, signal.SIGSTOP)
    async with open_domains(settings, answer_seconds=0.2) as domains:
        domain = domains.get("ldg1")
        assert await recorded_state(domains, domain) is domain.state is DomainState.ACTIVE
        with pytest.raises(WrongState):
            await domains.start(domain)
        with pytest.raises(OutcomeUnknown):
            await domains.suspend(domain)
        await domains.reap()
        assert domain.state is DomainState.ACTIVE
        os.kill(pid, signal.SIGCONT)

        async def found_again() -> bool:
            await domains.reap()
            return domain.process is not None

        await wait_until(found_again)
        assert domain.process is not None
        assert domain.process.pid == pid
        await domains.stop(domain)


async def test_one_that_never_answered_and_ended_is_bound_in_the_end(settings: Config) -> None:
    async with open_domains(settings) as domains:
        domain = await make(domains, DomainState.ACTIVE)
        assert domain.process is not None
        pid = domain.process.pid
    os.kill(pid, signal.SIGSTOP)
    async with open_domains(settings, answer_seconds=0.2) as domains:
        domain = domains.get("ldg1")
        assert domain.state is DomainState.ACTIVE
        os.kill(pid, signal.SIGKILL)

        async def bound() -> bool:
            await domains.reap()
            return domain.state is DomainState.BOUND

        await wait_until(bound)
        assert await recorded_state(domains, domain) is DomainState.BOUND
        assert not domains.directory_of(domain.definition.uuid).exists()


async def test_an_active_domain_without_its_hypervisor_stays_active(settings: Config) -> None:
    async with open_domains(settings) as domains:
        await make(domains, DomainState.ACTIVE)
    async with open_domains(settings, {}) as domains:
        domain = domains.get("ldg1")
        assert await recorded_state(domains, domain) is domain.state is DomainState.ACTIVE
        with pytest.raises(OutcomeUnknown, match="the hypervisor of ldg1 is not enabled"):
            await domains.suspend(domain)
    async with open_domains(settings) as domains:
        assert await domains.get("ldg1").run_state() is RunState.RUNNING


async def test_one_that_a_migration_holds_is_left_to_it_at_start(settings: Config) -> None:
    definition = define()
    journal = await Journal.open(settings.host.state_directory / "journal.sqlite")
    entry = MigrationEntry(
        id="a" * 32,
        side=Side.TARGET,
        peer="host-b",
        peer_journal="b" * 32,
        definition=definition,
        run_state=RunState.RUNNING,
    )
    receiving = DomainEntry(definition=definition, state=DomainState.ACTIVE, migration=entry.id)
    await journal.append(entry, RecordKind.PREPARED, "", receiving=receiving)
    await journal.aclose()
    async with open_domains(settings) as domains:
        domain = domains.get("ldg1")
        assert (domain.state, domain.migration) == (DomainState.ACTIVE, entry.id)
        assert domains.inventory.memory_free_bytes == 62 * MIB


async def test_a_receiving_domain_is_expected(domains: Domains) -> None:
    definition = define()
    entry = DomainEntry(definition=definition, state=DomainState.ACTIVE, migration="m1")
    domain = domains.expect(entry)
    assert domains.find(definition.uuid) is domain
    assert domains.inventory.memory_free_bytes == 62 * MIB
    cold = domains.expect(
        attrs.evolve(entry, definition=define("cold"), state=DomainState.INACTIVE)
    )
    assert cold.migration == "m1"
    assert domains.inventory.memory_free_bytes == 62 * MIB


async def test_a_verb_does_not_act_on_a_domain_that_was_removed_meanwhile(domains: Domains) -> None:
    """Both want the lock; whoever comes second meets what is there then."""
    definition = define()
    for _ in range(20):
        await domains.add(definition)
        done: list[str] = []

        async def ask(verb: str, done: list[str] = done) -> None:
            try:
                async with domains.operation(definition.name) as domain:
                    await do(domains, verb, domain)
                    done.append(verb)
            except (NotFound, WrongState):
                pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "remove")
            nursery.start_soon(ask, "bind")
        assert len(done) == 1
        if done == ["bind"]:
            async with domains.operation(definition.name) as domain:
                await domains.unbind(domain)
                await domains.remove(domain)
        assert domains.inventory.memory_free_bytes == 64 * MIB


async def test_a_process_that_the_journal_does_not_know_keeps_its_uuid(
    settings: Config, caplog: pytest.LogCaptureFixture
) -> None:
    """The journal was lost; the domain still runs. Nobody starts a second one."""
    async with open_domains(settings) as before:
        definition = (await make(before, DomainState.ACTIVE)).definition
        directory = before.directory_of(definition.uuid)
    for path in settings.host.state_directory.glob("journal*"):
        path.unlink()
    async with open_domains(settings) as domains:
        assert "the journal does not know" in caplog.text
        with pytest.raises(Busy, match="uuid"):
            await domains.add(definition)
        view = await domains.inventory.view(domains)
        assert definition.uuid in view.uuids  # nor does a migration bring it
        with pytest.raises(HypervisorError, match="lives already"):
            domains.make_directory(definition.uuid)
        assert len(processes_in(directory)) == 1
        await end_processes(settings)
        await domains.add(definition)  # it has ended: the uuid is free


async def test_a_name_that_is_anothers_uuid_hides_nobody(domains: Domains) -> None:
    meant = "abcdef12-0000-4000-8000-000000000001"
    named = await make(domains, DomainState.BOUND, name=meant)  # found first, by its age
    domain = await make(domains, DomainState.INACTIVE, uuid=meant)
    assert domains.get(meant) is domain
    async with domains.operation(meant) as held:
        assert held is domain
    await domains.remove(domain)
    assert domains.get(meant) is named
