"""Every statement of ``ldmd/hypervisor/driver.py``, held against every driver."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest
import trio

from ldmd.definition import DomainDefinition, to_document
from ldmd.errors import HypervisorError, OutcomeUnknown
from ldmd.hypervisor import process
from ldmd.hypervisor.driver import Attachments, DomainProcess, RunStatus
from ldmd.hypervisor.oracle import examine_domain, examine_memory, read_console
from protocol import limits
from tests.ldmd.hypervisor.rig import (
    Rig,
    copy_ram,
    data_ranges,
    descriptors_of,
    digest_ram,
    open_descriptors,
    processes_in,
    ram_of,
)

IMPATIENT_SECONDS = 0.3
ROUND_TRIPS = 20
REPOSITORY = Path(__file__).parents[3]


@contextmanager
def stopped(domain: DomainProcess) -> Iterator[None]:
    """Its process lives and does nothing."""
    os.kill(domain.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(domain.pid, signal.SIGCONT)


@contextmanager
def lone_manager(
    rig: Rig, definition: DomainDefinition, run_directory: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that is the manager; killed at the end at the latest."""
    words = [rig.case.name, str(run_directory), json.dumps(to_document(definition))]
    command = [sys.executable, "-m", "tests.ldmd.hypervisor.lone_manager", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY) as manager:
        try:
            yield manager
        finally:
            manager.kill()


# ---- capabilities and create ---------------------------------------------------------------------


async def test_capabilities_name_what_a_definition_may_have(rig: Rig) -> None:
    capabilities = await rig.hypervisor.capabilities()
    assert capabilities.kind == rig.hypervisor.kind == rig.case.definition.hypervisor
    assert capabilities.version > (0,)
    assert rig.case.definition.machine in capabilities.machines
    assert rig.case.definition.firmware in capabilities.firmwares
    assert capabilities.architecture
    assert capabilities.accelerator


async def test_a_cpu_is_the_same_whenever_it_is_asked_about(rig: Rig) -> None:
    definition = rig.case.define()
    model = await rig.hypervisor.describe_cpu(definition)
    assert model.model
    assert not model.features & model.unavailable
    assert await rig.hypervisor.describe_cpu(definition) == model
    assert await rig.case.make(5.0).describe_cpu(definition) == model, "as another manager sees it"
    with pytest.raises(HypervisorError):
        await rig.hypervisor.describe_cpu(attrs.evolve(definition, cpu_arch="no-such-thing"))


async def test_created_is_suspended_before_its_first_instruction(rig: Rig) -> None:
    domain = await rig.create()
    assert await domain.status() is RunStatus.SUSPENDED
    await rig.assert_still(domain)
    assert read_console(domain) == ""
    assert examine_memory(domain, rig.case.layout).visited == 0


async def test_runs_when_resumed(rig: Rig) -> None:
    domain = await rig.create()
    await rig.run_until_printed(domain)
    assert await domain.status() is RunStatus.RUNNING
    await domain.suspend()
    rig.assert_oracle(domain)


@pytest.mark.parametrize("field", ["machine", "firmware", "cpu_arch"])
async def test_create_refuses_what_is_not_in_the_lists(rig: Rig, field: str) -> None:
    definition = attrs.evolve(rig.case.define(), **{field: "no-such-thing"})
    for create in (rig.hypervisor.create, rig.hypervisor.create_receiving):
        run_directory = rig.make_run_directory()
        with pytest.raises(HypervisorError):
            await create(definition, run_directory, Attachments())
        assert processes_in(run_directory) == []
        assert await rig.adopt(definition, run_directory) is None


async def test_one_run_directory_has_one_domain(rig: Rig) -> None:
    definition = rig.case.define()
    first = await rig.create(definition)
    with pytest.raises(HypervisorError):
        await rig.hypervisor.create(definition, rig.run_directories[0], Attachments())
    assert await first.status() is RunStatus.SUSPENDED
    assert processes_in(rig.run_directories[0]) == [first.pid]


async def test_cancelled_create_leaves_nothing(rig: Rig) -> None:
    for milliseconds in (0, 5, 20, 50):
        run_directory = rig.make_run_directory()
        with trio.move_on_after(milliseconds / 1000) as scope:
            await rig.hypervisor.create(rig.case.define(), run_directory, Attachments())
        if scope.cancelled_caught:
            assert processes_in(run_directory) == []
            assert process.find(run_directory) is None


async def test_process_is_on_its_own(rig: Rig, tmp_path: Path) -> None:
    """No signal to the manager's group reaches it, and it keeps nothing of the manager's open."""
    marker = tmp_path / "marker"
    descriptor = os.open(marker, os.O_CREAT | os.O_RDWR)
    os.set_inheritable(descriptor, True)
    try:
        domain = await rig.create()
    finally:
        os.close(descriptor)
    assert os.getsid(domain.pid) == domain.pid
    assert marker not in descriptors_of(domain.pid)
    assert processes_in(rig.run_directories[0]) == [domain.pid]


# ---- suspend, resume, destroy --------------------------------------------------------------------


async def test_suspend_freezes_ram_and_console(rig: Rig) -> None:
    domain = await rig.create()
    for lines in (1, 3, 5):
        await rig.run_until_printed(domain, lines)
        await domain.suspend()
        assert await domain.status() is RunStatus.SUSPENDED
        await rig.assert_still(domain)
        rig.assert_oracle(domain)


async def test_suspend_resume_and_destroy_are_idempotent(rig: Rig) -> None:
    domain = await rig.create()
    await domain.suspend()
    await domain.resume()
    await domain.resume()
    assert await domain.status() is RunStatus.RUNNING
    await rig.run_until_printed(domain)
    await domain.suspend()
    await domain.suspend()
    assert await domain.status() is RunStatus.SUSPENDED
    rig.assert_oracle(domain)
    await domain.destroy()
    await domain.destroy()
    assert await domain.status() is RunStatus.GONE


@pytest.mark.parametrize("status", ["running", "suspended", "receiving"])
async def test_destroy_whatever_its_status(rig: Rig, status: str) -> None:
    definition = rig.case.define()
    make = rig.create_receiving if status == "receiving" else rig.create
    domain = await make(definition)
    if status == "running":
        await domain.resume()
    assert await domain.status() == status
    await domain.destroy()
    assert processes_in(rig.run_directories[0]) == []
    assert await domain.status() is RunStatus.GONE
    assert await rig.adopt(definition, rig.run_directories[0]) is None


async def test_gone_process_definitely_does_nothing(rig: Rig) -> None:
    domain = await rig.create()
    assert not domain.has_ended()
    with stopped(domain):
        assert not domain.has_ended(), "it was not asked"
    os.kill(domain.pid, signal.SIGKILL)
    await rig.wait_status(domain, RunStatus.GONE)
    assert domain.has_ended()
    for call in (domain.suspend, domain.resume, domain.retrieve_device_state):
        with pytest.raises(HypervisorError):
            await call()
    with pytest.raises(HypervisorError):
        await domain.install_device_state(b"state")
    with pytest.raises(HypervisorError):
        domain.open_ram()
    await domain.destroy()


# ---- state ---------------------------------------------------------------------------------------


async def test_ram_descriptors_are_of_the_regions(rig: Rig) -> None:
    domain = await rig.create()
    assert rig.case.layout.region in [region.name for region in domain.regions]
    assert len({region.name for region in domain.regions}) == len(domain.regions)
    with ram_of(domain) as descriptors:
        for region, descriptor in zip(domain.regions, descriptors, strict=True):
            assert region.size_bytes % 4096 == 0
            assert os.fstat(descriptor).st_size == region.size_bytes
            assert not os.get_inheritable(descriptor)


async def test_equal_definitions_have_equal_regions(rig: Rig) -> None:
    definition = rig.case.define()
    created = await rig.create(definition)
    receiving = await rig.create_receiving(definition)
    assert created.regions == receiving.regions
    adopted = await rig.adopt(definition, rig.run_directories[1])
    assert adopted is not None
    assert adopted.regions == created.regions


async def test_receiving_ram_is_zero_and_unpopulated(rig: Rig) -> None:
    domain = await rig.create_receiving()
    assert await domain.status() is RunStatus.RECEIVING
    with ram_of(domain) as descriptors:
        for region, descriptor in zip(domain.regions, descriptors, strict=True):
            assert list(data_ranges(descriptor, region.size_bytes)) == []
            assert os.fstat(descriptor).st_blocks == 0


async def test_receiving_domain_does_not_resume(rig: Rig) -> None:
    domain = await rig.create_receiving()
    with pytest.raises(HypervisorError):
        await domain.resume()
    assert await domain.status() is RunStatus.RECEIVING
    await rig.assert_still(domain)


async def test_moves_to_another_process(rig: Rig) -> None:
    definition = rig.case.define()
    source = await rig.create(definition)
    await rig.run_whole_pass(source)
    target = await rig.move(source, definition)
    assert await target.status() is RunStatus.SUSPENDED
    assert digest_ram(target) == digest_ram(source)
    assert read_console(target) == "", "it has run no instruction"
    await rig.assert_still(target)
    printed = read_console(source)
    await source.destroy()
    await rig.run_until_printed(target, 5)
    await target.suspend()
    rig.assert_oracle(target, printed)


async def test_source_may_resume_after_retrieve(rig: Rig) -> None:
    definition = rig.case.define()
    source = await rig.create(definition)
    await rig.run_whole_pass(source)
    target = await rig.move(source, definition)
    assert await source.status() is RunStatus.SUSPENDED
    await target.destroy()
    await rig.run_until_printed(source, read_console(source).count("\n") + 5)
    await source.suspend()
    rig.assert_oracle(source)
    assert await source.retrieve_device_state()


async def test_retrieve_is_for_suspended_domains_and_bounded(rig: Rig) -> None:
    domain = await rig.create()
    await domain.resume()
    with pytest.raises(HypervisorError):
        await domain.retrieve_device_state()
    assert await domain.status() is RunStatus.RUNNING
    await domain.suspend()
    assert 0 < len(await domain.retrieve_device_state()) <= limits.DEVICE_STATE_BYTES_MAX
    receiving = await rig.create_receiving()
    with pytest.raises(HypervisorError):
        await receiving.retrieve_device_state()


async def test_install_is_for_receiving_domains(rig: Rig) -> None:
    definition = rig.case.define()
    source = await rig.create(definition)
    state = await source.retrieve_device_state()
    with pytest.raises(HypervisorError):
        await source.install_device_state(state)
    target = await rig.move(source, definition)
    with pytest.raises(HypervisorError):
        await target.install_device_state(state)
    await rig.run_until_printed(target)


@pytest.mark.parametrize("fault", ["empty", "random", "half", "first-byte", "zeros", "oversized"])
async def test_hostile_device_state_is_refused(rig: Rig, fault: str) -> None:
    definition = rig.case.define()
    source = await rig.create(definition)
    await rig.run_until_printed(source)
    await source.suspend()
    state = await source.retrieve_device_state()
    hostile = {
        "empty": b"",
        "random": random.Random(fault).randbytes(len(state)),
        "half": state[: len(state) // 2],
        "first-byte": bytes([state[0] ^ 0xFF]) + state[1:],
        "zeros": bytes(len(state)),
        "oversized": state + bytes(limits.DEVICE_STATE_BYTES_MAX),
    }[fault]
    target = await rig.create_receiving(definition)
    copy_ram(source, target)
    with pytest.raises(HypervisorError):
        await target.install_device_state(hostile)
    with pytest.raises(HypervisorError):
        await target.resume()
    with pytest.raises(HypervisorError):
        await target.install_device_state(state)
    assert await target.status() in (RunStatus.RECEIVING, RunStatus.GONE)
    assert read_console(target) == ""
    await target.destroy()
    assert await target.status() is RunStatus.GONE
    await source.resume()


async def test_round_trips(rig: Rig) -> None:
    """To and fro between processes, cut at places that chance chooses."""
    definition = rig.case.define()
    chance = random.Random(1)
    printed = ""
    domain = await rig.create(definition)
    await rig.run_whole_pass(domain)
    for _ in range(ROUND_TRIPS):
        for _ in range(2):
            target = await rig.move(domain, definition)
            printed += read_console(domain)
            await domain.destroy()
            await domain.aclose()
            await rig.run_until_printed(target, chance.randrange(1, 4))
            await trio.sleep(chance.random() * 0.01)
            await target.suspend()
            rig.assert_oracle(target, printed)
            domain = target


# ---- a process that does not answer --------------------------------------------------------------


async def test_stopped_process_leaves_the_outcome_unknown(rig: Rig) -> None:
    rig.hypervisor = rig.case.make(IMPATIENT_SECONDS)
    definition = rig.case.define()
    domain = await rig.create(definition)
    await rig.run_until_printed(domain)
    with stopped(domain):
        for call in (domain.status, domain.suspend, domain.resume):
            with trio.fail_after(IMPATIENT_SECONDS + 5), pytest.raises(OutcomeUnknown):
                await call()
        with trio.fail_after(IMPATIENT_SECONDS + 5), pytest.raises(OutcomeUnknown):
            await rig.hypervisor.adopt(definition, rig.run_directories[0])
    await rig.wait_status(domain, RunStatus.RUNNING, RunStatus.SUSPENDED)
    await rig.run_until_printed(domain, read_console(domain).count("\n") + 3)
    await domain.suspend()
    rig.assert_oracle(domain)


async def test_resume_that_timed_out_does_not_come_after_a_suspend(rig: Rig) -> None:
    rig.hypervisor = rig.case.make(IMPATIENT_SECONDS)
    domain = await rig.create()
    await rig.run_until_printed(domain)
    await domain.suspend()
    with stopped(domain), pytest.raises(OutcomeUnknown):
        await domain.resume()
    await domain.suspend()
    await rig.assert_still(domain)
    assert await domain.status() is RunStatus.SUSPENDED
    rig.assert_oracle(domain)


async def test_old_managers_resume_does_not_come_after_a_suspend(rig: Rig) -> None:
    """The same, when another manager has adopted the domain meanwhile."""
    rig.hypervisor = rig.case.make(IMPATIENT_SECONDS)
    definition = rig.case.define()
    domain = await rig.create(definition)
    with stopped(domain):
        with pytest.raises(OutcomeUnknown):
            await domain.resume()
        await domain.aclose()
    adopted = await rig.adopt(definition, rig.run_directories[0])
    assert adopted is not None
    await adopted.suspend()
    await rig.assert_still(adopted)
    assert await adopted.status() is RunStatus.SUSPENDED


async def test_cancelled_call_leaves_the_domain_usable(rig: Rig) -> None:
    domain = await rig.create()
    for call in (domain.resume, domain.suspend, domain.status, domain.retrieve_device_state):
        with stopped(domain), trio.move_on_after(0.05) as scope:
            await call()
        assert scope.cancelled_caught
    await domain.suspend()
    assert await domain.status() is RunStatus.SUSPENDED
    await rig.run_until_printed(domain, read_console(domain).count("\n") + 2)
    await domain.suspend()
    rig.assert_oracle(domain)


async def test_destroys_a_stopped_process(rig: Rig) -> None:
    domain = await rig.create()
    os.kill(domain.pid, signal.SIGSTOP)
    await domain.destroy()
    assert processes_in(rig.run_directories[0]) == []
    assert await domain.status() is RunStatus.GONE


# ---- adopt ---------------------------------------------------------------------------------------


async def test_adopts_what_it_let_go_of(rig: Rig) -> None:
    definition = rig.case.define()
    domain = await rig.create(definition)
    await rig.run_until_printed(domain)
    await domain.aclose()
    adopted = await rig.adopt(definition, rig.run_directories[0])
    assert adopted is not None
    assert (adopted.pid, adopted.uuid) == (domain.pid, definition.uuid)
    assert adopted.regions == domain.regions
    assert await adopted.status() is RunStatus.RUNNING
    await adopted.suspend()
    rig.assert_oracle(adopted)
    target = await rig.move(adopted, definition)
    await rig.run_until_printed(target)
    await target.suspend()
    rig.assert_oracle(target, read_console(adopted))


async def test_adopts_a_receiving_domain(rig: Rig) -> None:
    definition = rig.case.define()
    receiving = await rig.create_receiving(definition)
    await receiving.aclose()
    adopted = await rig.adopt(definition, rig.run_directories[0])
    assert adopted is not None
    assert await adopted.status() is RunStatus.RECEIVING
    source = await rig.create(definition)
    state = await source.retrieve_device_state()
    copy_ram(source, adopted)
    await adopted.install_device_state(state)
    await rig.run_until_printed(adopted)


async def test_adopts_from_a_manager_that_was_killed(rig: Rig) -> None:
    definition = rig.case.define()
    run_directory = rig.make_run_directory()
    with lone_manager(rig, definition, run_directory) as manager:
        assert manager.stdout is not None
        with trio.fail_after(rig.case.boot_seconds):
            while await trio.to_thread.run_sync(manager.stdout.readline) != b"made\n":
                assert manager.poll() is None
        manager.kill()
        await trio.to_thread.run_sync(manager.wait)
    adopted = await rig.adopt(definition, run_directory)
    assert adopted is not None
    assert await adopted.status() is RunStatus.RUNNING
    await rig.run_until_printed(adopted)
    report = await examine_domain(rig.hypervisor, definition, run_directory, rig.case.layout)
    assert report is not None
    assert (report.ok, report.status) == (True, RunStatus.RUNNING)
    await adopted.destroy()
    assert await examine_domain(rig.hypervisor, definition, run_directory, rig.case.layout) is None


async def test_forgets_no_process_when_the_manager_is_killed_in_create(rig: Rig) -> None:
    chance = random.Random(2)
    for _ in range(8):
        definition = rig.case.define()
        run_directory = rig.make_run_directory()
        with lone_manager(rig, definition, run_directory) as manager:
            assert manager.stdout is not None
            assert await trio.to_thread.run_sync(manager.stdout.readline) == b"begun\n"
            await trio.sleep(chance.random() * 0.05)
            manager.kill()
            await trio.to_thread.run_sync(manager.wait)
        adopted = await rig.adopt(definition, run_directory)
        if adopted is None:
            await rig.wait_until(lambda path=run_directory: processes_in(path) == [])
        else:
            assert processes_in(run_directory) == [adopted.pid]
            assert await adopted.status() in (RunStatus.SUSPENDED, RunStatus.RUNNING)
            await adopted.destroy()


async def test_adopts_nothing_where_nothing_lives(rig: Rig) -> None:
    definition = rig.case.define()
    assert await rig.adopt(definition, rig.make_run_directory()) is None
    assert await rig.adopt(definition, rig.root / "no-such-directory") is None
    domain = await rig.create(definition)
    os.kill(domain.pid, signal.SIGKILL)
    await rig.wait_status(domain, RunStatus.GONE)
    assert await rig.adopt(definition, rig.run_directories[-1]) is None


# ---- what is left --------------------------------------------------------------------------------


async def test_nothing_is_left(rig: Rig) -> None:
    definition = rig.case.define()
    warm_up = await rig.create(definition)  # threads and wake-up descriptors of the test itself
    await warm_up.destroy()
    await warm_up.aclose()
    before = open_descriptors()
    source = await rig.create(definition)
    await rig.run_until_printed(source)
    await source.suspend()
    target = await rig.move(source, definition)
    await rig.run_until_printed(target)
    adopted = await rig.adopt(definition, rig.run_directories[-1])
    assert adopted is not None
    for domain in (source, target, adopted):
        await domain.destroy()
        await domain.aclose()
    assert open_descriptors() == before
    for run_directory in rig.run_directories:
        assert processes_in(run_directory) == []
    entries = {path for path in rig.root.rglob("*") if not path.is_dir()}
    assert all(path.parent in rig.run_directories for path in entries)
