"""A source with a valid certificate that repeats, reorders, replays and mixes up what it says: the target believes no more
than its table, runs one copy at most, and is ready for an honest migration afterwards.

What is said is real: a manager's own migration of a running domain, taken down by a target that refuses at the very end.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
from attrs import define, field, frozen

from ldmd.config import load
from ldmd.errors import LdmdError, LinkError
from ldmd.link.dialer import dial
from ldmd.link.pump import Link
from ldmd.link.tls import TlsFiles
from protocol import messages as m
from tests.managers import Fleet, make_fleet, wait_for
from tests.migration.test_lying_target import answer_honestly, build_hello, serve_liar

ANSWER_SECONDS = 10.0


@frozen
class Chunk:
    region: int
    offset: int
    payload: bytes = field(repr=lambda payload: f"{len(payload)} bytes")


Saying = m.MigrationMessage | Chunk
Story = tuple[Saying, ...]

ANSWERS: dict[type[m.MigrationMessage], type[m.MigrationMessage]] = {
    m.Check: m.Checked,
    m.Prepare: m.Prepared,
    m.Digest: m.Installed,
    m.Handoff: m.HandoffDone,
    m.Released: m.Settled,
}
"""What an honest source waits for before it goes on."""


@define(eq=False)
class Listener:
    """A target that takes down what it hears, answers as if it did all of it, and says no in the end."""

    heard: list[Saying] = field(factory=list)

    async def take_message(self, link: Link, message: m.MigrationMessage) -> None:
        self.heard.append(message)
        answers = answer_honestly(message)
        if isinstance(message, m.Handoff):
            no = m.HandoffRefused(migration=message.migration, code="aborted", sentence="no")
            answers = (no,)
        for answer in answers:
            link.post(answer)

    def take_chunk(self, link: Link, chunk: m.StateChunk) -> None:
        self.heard.append(Chunk(chunk.region, chunk.offset, bytes(chunk.payload)))

    def link_lost(self, link: Link, sentence: str) -> None:
        pass


async def take_down_story(fleet: Fleet) -> Story:
    """All that a manager says in a migration that succeeds; that manager has ended afterwards."""
    listener = Listener()
    async with trio.open_nursery() as nursery:
        await fleet["host-a"].start()
        await nursery.start(serve_liar, fleet, listener)
        await fleet.start_domain("host-a", memory_mib=1)
        with pytest.raises(LdmdError, match="stays on host-a"):
            await fleet["host-a"].call("migrate-domain", {"domain": "ldg1", "peer": "host-b"})
        nursery.cancel_scope.cancel()
    await fleet["host-a"].stop()
    handoff = next(number for number, s in enumerate(listener.heard) if isinstance(s, m.Handoff))
    story = tuple(listener.heard[: handoff + 1])
    assert sum(isinstance(s, Chunk) for s in story) > 1
    return (*story, m.Released(migration=listener.heard[0].migration))  # type: ignore[union-attr]


@define(eq=False)
class Source:
    """The other end of one link to host-b; ``answers`` in the order in which they came."""

    link: Link = field(init=False)
    answers: list[m.MigrationMessage] = field(factory=list)

    async def take_message(self, link: Link, message: m.MigrationMessage) -> None:
        self.answers.append(message)

    def take_chunk(self, link: Link, chunk: m.StateChunk) -> None:
        raise AssertionError("the target sent state")

    def link_lost(self, link: Link, sentence: str) -> None:
        pass

    async def say(self, saying: Saying) -> None:
        if isinstance(saying, Chunk):
            await self.link.send_chunk(saying.region, saying.offset, memoryview(saying.payload))
        else:
            self.link.post(saying)

    async def wait_answer(self, kind: type[m.MigrationMessage]) -> None:
        with trio.fail_after(ANSWER_SECONDS):
            while not any(isinstance(answer, kind) for answer in self.answers):
                if self.link.ended:
                    raise LinkError(f"ended before {kind.TYPE}; heard {self.answers}")
                await trio.sleep(0.005)

    async def tell(self, story: Sequence[Saying]) -> None:
        """Wait for the answers that an honest source waits for; LinkError when the target has ended the link."""
        for saying in story:
            await self.say(saying)
            if type(saying) in ANSWERS:
                await self.wait_answer(ANSWERS[type(saying)])  # type: ignore[index]

    async def blurt(self, story: Sequence[Saying]) -> None:
        """Everything without waiting, until the target ends the link or has nothing more to say."""
        with contextlib.suppress(LinkError), trio.move_on_after(1.0):
            for saying in story:
                await self.say(saying)
            await self.link.wait_ended()


@asynccontextmanager
async def open_source(fleet: Fleet, host: str = "host-a") -> AsyncIterator[Source]:
    """A link to host-b with that host's own certificate."""
    config = load(fleet[host].folder / "ldmd.toml")
    peer = config.peers["host-b"]
    files = TlsFiles(
        certificate=config.identity.certificate,
        key=config.identity.key,
        authorities=config.identity.authorities,
    )
    source = Source()
    secure = await dial(peer, files)
    source.link = Link(secure.stream, secure.peer, build_hello(host), source)
    async with trio.open_nursery() as nursery:
        await nursery.start(source.link.run)
        yield source
        source.link.close()
        await source.link.wait_ended()
        nursery.cancel_scope.cancel()


def rename(story: Story, number: int) -> Story:
    """The same of another migration."""
    ident = f"{number:032x}"
    return tuple(s if isinstance(s, Chunk) else attrs.evolve(s, migration=ident) for s in story)


def place(story: Story, kind: type[Saying], last: bool = False) -> int:
    found = [number for number, saying in enumerate(story) if isinstance(saying, kind)]
    return found[-1 if last else 0]


def swap(story: Story, one: int, other: int) -> Story:
    changed = list(story)
    changed[one], changed[other] = story[other], story[one]
    return tuple(changed)


def twice(story: Story, number: int) -> Story:
    return (*story[: number + 1], *story[number:])


def without(story: Story, *kinds: type[Saying]) -> Story:
    return tuple(s for s in story if not isinstance(s, kinds))


def of_another(story: Story, kind: type[m.MigrationMessage]) -> Story:
    """One message names another migration than its link is for."""
    number = place(story, kind)
    other = attrs.evolve(story[number], migration="f" * 32)  # type: ignore[misc]
    return (*story[:number], other, *story[number + 1 :])


LIES: dict[str, Callable[[Story], Story]] = {
    "CHECK twice": lambda s: twice(s, place(s, m.Check)),
    "PREPARE twice": lambda s: twice(s, place(s, m.Prepare)),
    "the first chunk twice": lambda s: twice(s, place(s, Chunk)),
    "the last chunk twice": lambda s: twice(s, place(s, Chunk, last=True)),
    "DIGEST twice": lambda s: twice(s, place(s, m.Digest)),
    "PREPARE before CHECK": lambda s: swap(s, place(s, m.Check), place(s, m.Prepare)),
    "a chunk before PREPARE": lambda s: swap(s, place(s, m.Prepare), place(s, Chunk)),
    "chunks in another order": lambda s: swap(s, place(s, Chunk), place(s, Chunk, last=True)),
    "DIGEST before the state": lambda s: swap(s, place(s, Chunk), place(s, m.Digest)),
    "HANDOFF before PREPARE": lambda s: swap(s, place(s, m.Prepare), place(s, m.Handoff)),
    "HANDOFF before DIGEST": lambda s: swap(s, place(s, m.Digest), place(s, m.Handoff)),
    "HANDOFF without any state": lambda s: without(s, Chunk, m.Digest),
    "RELEASED before HANDOFF": lambda s: swap(s, place(s, m.Handoff), place(s, m.Released)),
    "RELEASED and no HANDOFF": lambda s: without(s, m.Handoff),
    "a chunk left out": lambda s: s[: place(s, Chunk)] + s[place(s, Chunk) + 1 :],
    "CHECK of another": lambda s: of_another(s, m.Check),
    "PREPARE of another": lambda s: of_another(s, m.Prepare),
    "DIGEST of another": lambda s: of_another(s, m.Digest),
    "HANDOFF of another": lambda s: of_another(s, m.Handoff),
}


async def is_idle(fleet: Fleet) -> bool:
    return bool((await fleet["host-b"].call("status"))["migrations"] == 0)


async def test_it_repeats_reorders_and_mixes_up(tmp_path: Path) -> None:
    """Said at once or with an honest source's patience: no copy comes of it, and nothing is left of it."""
    async with make_fleet(tmp_path, start=False) as fleet:
        story = await take_down_story(fleet)
        path = fleet["host-b"].folder / "ldmd.toml"
        path.write_text(path.read_text().replace("hold-seconds = 3", "hold-seconds = 0.3"))
        await fleet["host-b"].start()
        number = 0
        for lie, change in LIES.items():
            for patient in (True, False):
                number += 1
                changed = change(rename(story, number))
                async with open_source(fleet) as source:
                    if patient:
                        with contextlib.suppress(LinkError), trio.move_on_after(0.5):
                            await source.tell(changed)
                    else:
                        await source.blurt(changed)
                await wait_for(lambda: is_idle(fleet))
                assert await fleet["host-b"].domains() == {}, lie
                assert find_run_directories(fleet) == [], lie
                found = (await fleet["host-b"].call("list-migrations"))["migrations"]
                assert {h["decision"] for h in found} <= {"source"}, lie
        await assert_honest_one_succeeds(fleet, rename(story, number + 1))


def find_run_directories(fleet: Fleet) -> list[Path]:
    return list((fleet["host-b"].folder / "run" / "domains").glob("*"))


async def assert_honest_one_succeeds(fleet: Fleet, story: Story) -> None:
    async with open_source(fleet) as source:
        await source.tell(story)
    assert await fleet.copies_at("host-b") == "running"


async def test_it_replays_an_old_migration(tmp_path: Path) -> None:
    """The answers are the old ones; the domain, and where it has gone meanwhile, are not touched."""
    async with make_fleet(tmp_path, "host-a", "host-b", "host-c", start=False) as fleet:
        story = await take_down_story(fleet)
        for host in ("host-b", "host-c"):
            await fleet[host].start()
        await assert_honest_one_succeeds(fleet, story)
        process = (await fleet["host-b"].domains())["ldg1"]["pid"]
        await replay(fleet, story)
        domain = (await fleet["host-b"].domains())["ldg1"]
        assert (domain["run_state"], domain["pid"]) == ("running", process)
        await fleet["host-b"].call("migrate-domain", {"domain": "ldg1", "peer": "host-c"})
        await replay(fleet, story)
        assert await fleet["host-b"].domains() == {}
        assert find_run_directories(fleet) == []
        assert await fleet.copies_at("host-c") == "running"


async def replay(fleet: Fleet, story: Story) -> None:
    """The whole of it, and each of its messages on a link of its own."""
    ident = story[0].migration  # type: ignore[union-attr]
    cancel = m.Cancel(migration=ident, code="cancelled", sentence="s")
    for saying in (None, cancel, *without(story, Chunk)):
        async with open_source(fleet) as source:
            await source.blurt(story if saying is None else (saying,))
        heard = {type(answer) for answer in source.answers}
        expected = {m.Handoff: {m.HandoffDone}, m.Released: {m.Settled}}
        assert heard == expected.get(type(saying), set()), saying  # type: ignore[call-overload]


async def test_another_peer_speaks_for_it(tmp_path: Path) -> None:
    """A third host can neither end, decide nor take over a migration that waits for HANDOFF."""
    async with make_fleet(tmp_path, "host-a", "host-b", "host-c", start=False) as fleet:
        story = await take_down_story(fleet)
        await fleet["host-b"].start()
        ident = story[0].migration  # type: ignore[union-attr]
        handoff = place(story, m.Handoff)
        async with open_source(fleet) as source:
            await source.tell(story[:handoff])
            for saying in (
                m.Handoff(migration=ident),
                m.Released(migration=ident),
                m.Cancel(migration=ident, code="cancelled", sentence="s"),
                story[0],
                rename(story, 1)[0],
            ):
                async with open_source(fleet, "host-c") as other:
                    await other.blurt((saying,))
                assert not any(isinstance(a, m.HandoffDone | m.Settled) for a in other.answers)
                assert await fleet.copies_at("host-b") == "suspended", saying
            await source.tell(story[handoff:])
        assert await fleet.copies_at("host-b") == "running"


async def assert_ends_nothing(fleet: Fleet, story: Story, check: m.Check, *, late: bool) -> None:
    """``check`` comes while a migration of the domain waits for HANDOFF: on a link made before that one's, or after."""
    handoff = place(story, m.Handoff)
    answer = m.Refused if late else m.Checked
    async with contextlib.AsyncExitStack() as stack:
        source, other = [await stack.enter_async_context(open_source(fleet)) for _ in range(2)]
        if late:
            source, other = other, source
        await source.tell(story[:handoff])
        await other.say(check)
        await other.wait_answer(answer)
        assert await fleet.copies_at("host-b") == "suspended"
        await source.tell(story[handoff:])
    assert await fleet.copies_at("host-b") == "running"


async def test_a_late_check_does_not_end_the_migration_that_came_after_it(tmp_path: Path) -> None:
    """It lay on a link that the source had given up, until a manager that stood still came to read it."""
    async with make_fleet(tmp_path, start=False) as fleet:
        story = await take_down_story(fleet)
        await fleet["host-b"].start()
        check = rename(story, 1)[0]
        assert isinstance(check, m.Check)
        await assert_ends_nothing(fleet, story, check, late=True)


async def test_a_dry_run_ends_nothing(tmp_path: Path) -> None:
    async with make_fleet(tmp_path, start=False) as fleet:
        story = await take_down_story(fleet)
        await fleet["host-b"].start()
        check = rename(story, 1)[0]
        assert isinstance(check, m.Check)
        await assert_ends_nothing(fleet, story, attrs.evolve(check, dry_run=True), late=False)
