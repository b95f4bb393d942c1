"""The console's way in, held against every driver: what is typed is read once, in order, here or where it moved."""

from __future__ import annotations

import random

import pytest
import trio

from ldmd.errors import HypervisorError
from ldmd.hypervisor.driver import DomainProcess
from ldmd.hypervisor.oracle import read_console
from tests.ldmd.hypervisor.rig import Rig

PASTE = "".join(chr(ord("a") + n % 26) for n in range(3000))
MOVES = 6


async def type_all(domain: DomainProcess, text: str) -> None:
    """At the domain's pace."""
    data = text.encode()
    while data:
        data = data[await domain.write_console(data) :]


def echoed(rig: Rig, domain: DomainProcess, before: str = "") -> str:
    """All that was printed behind the first prompt, on hosts where it was before too."""
    return (before + read_console(domain)).partition(rig.case.prompt)[2]


async def boot(rig: Rig) -> DomainProcess:
    domain = await rig.create(rig.case.define_echo())
    await domain.resume()
    await rig.wait_until(lambda: rig.case.prompt in read_console(domain))
    return domain


async def test_what_is_typed_is_read_and_a_line_is_answered(rig: Rig) -> None:
    domain = await boot(rig)
    await type_all(domain, "1 2\r")
    await rig.wait_until(lambda: rig.case.answer in echoed(rig, domain))
    assert echoed(rig, domain).startswith("1 2")


async def test_a_paste_is_read_in_order_at_the_domains_pace(rig: Rig) -> None:
    domain = await boot(rig)
    text = PASTE[: rig.case.line_bytes_max]
    await type_all(domain, text)
    await rig.wait_until(lambda: len(echoed(rig, domain)) >= len(text))
    assert echoed(rig, domain) == text


async def test_nothing_is_taken_while_it_does_not_run(rig: Rig) -> None:
    created = await rig.create(rig.case.define_echo())
    receiving = await rig.create_receiving(rig.case.define_echo())
    for domain in (created, receiving):
        assert await domain.write_console(b"abc") == 0
    domain = await boot(rig)
    await domain.suspend()
    assert await domain.write_console(b"lost") == 0
    await domain.resume()
    await type_all(domain, "xy")
    await rig.wait_until(lambda: len(echoed(rig, domain)) >= 2)
    assert echoed(rig, domain) == "xy"


async def test_who_never_reads_takes_a_bounded_amount_and_runs_on(rig: Rig) -> None:
    definition = rig.case.define()
    domain = await rig.create(definition)  # the oracle does not look at its console
    await rig.run_until_printed(domain)
    taken = [await domain.write_console(PASTE.encode()) for _ in range(20)]
    assert sum(taken) < 1024
    assert taken[-10:] == [0] * 10
    await rig.run_until_printed(domain, read_console(domain).count("\n") + 3)
    await domain.suspend()
    rig.assert_oracle(domain)
    # what was taken and not read moves with it: there is no room at the target either
    target = await rig.move(domain, definition)
    await domain.destroy()
    await rig.run_until_printed(target)
    assert await target.write_console(PASTE.encode()) == 0


async def test_typed_while_it_moves_nothing_is_lost_or_comes_twice(rig: Rig) -> None:
    """Somebody types on and on, and does not know of the moves: each byte is echoed once, on one host or the other."""
    domain = await boot(rig)
    chance = random.Random(3)
    text = PASTE[: rig.case.line_bytes_max]
    place = [domain]
    done = trio.Event()
    position = 0

    async def type_on() -> None:
        nonlocal position
        while position < len(text):
            piece = text[position : position + chance.randrange(1, 40)].encode()
            try:
                taken = await place[0].write_console(piece)
            except HypervisorError:
                taken = 0  # the process of before
            position += taken
            await trio.sleep(0 if taken else 0.002)
        done.set()

    printed = ""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(type_on)
        for _ in range(MOVES):
            await trio.sleep(chance.random() * 0.05)
            await domain.suspend()
            target = await rig.move(domain, rig.case.define_echo())
            printed += read_console(domain)
            await domain.destroy()
            await target.resume()
            place[0] = domain = target
        with trio.fail_after(rig.case.boot_seconds):
            await done.wait()
    await rig.wait_until(lambda: len(echoed(rig, domain, printed)) >= len(text))
    assert echoed(rig, domain, printed) == text


async def test_a_later_manager_types_too(rig: Rig) -> None:
    domain = await boot(rig)
    await type_all(domain, "before")
    await domain.aclose()
    definition = rig.case.define_echo(domain.uuid)
    adopted = await rig.adopt(definition, rig.run_directories[0])
    assert adopted is not None
    await type_all(adopted, "after")
    await rig.wait_until(lambda: len(echoed(rig, adopted)) >= 11)
    assert echoed(rig, adopted) == "beforeafter"
    await adopted.suspend()
    suspended = await rig.adopt(definition, rig.run_directories[0])
    assert suspended is not None
    assert await suspended.write_console(b"x") == 0


async def test_a_gone_process_takes_nothing(rig: Rig) -> None:
    domain = await boot(rig)
    await domain.destroy()
    with pytest.raises(HypervisorError):
        await domain.write_console(b"x")
