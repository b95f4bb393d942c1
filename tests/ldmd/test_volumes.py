"""Which volume serves a vdisk, what a source claims of its storage, and how a target examines that."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from ldmd import volumes as module
from ldmd.claims import Claim, Proofs, VolumeView
from ldmd.config import VolumeSettings
from ldmd.definition import CACHES, DomainDefinition, VirtualDisk
from ldmd.errors import NotFound, WrongState
from ldmd.volumes import Found, Volumes
from protocol import codec
from protocol.messages import Check
from protocol.phases import RunState
from tests.ldmd.host import define

PROOF = "0123456789abcdef" * 2
SIZE_BYTES = 8192


def make(path: Path, content: bytes = bytes(SIZE_BYTES)) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def serve(**services: Mapping[str, Any]) -> Volumes:
    """Service -> volume -> path, or settings."""
    return Volumes(
        {
            service: {
                name: VolumeSettings(path=what)
                if isinstance(what, Path)
                else VolumeSettings(**what)
                for name, what in volumes.items()
            }
            for service, volumes in services.items()
        }
    )


def vdisk(
    name: str = "d0", volume: str = "root", service: str = "vds0", **more: Any
) -> VirtualDisk:
    return VirtualDisk(name=name, volume=volume, service=service, **more)


def domain(*disks: VirtualDisk) -> DomainDefinition:
    return define(vdisks=disks)


def names(volumes: Volumes, disk: VirtualDisk) -> list[str]:
    return [v.name for v in volumes.candidates(disk)]


# ---- which volume ------------------------------------------------------------------------------------------


@pytest.fixture
def group(tmp_path: Path) -> Volumes:
    root = make(tmp_path / "root")
    return serve(
        vds0={"root": {"path": root, "mpgroup": "g"}, "alone": root},
        vds1={"other": root, "root": {"path": root, "mpgroup": "g"}},
        vds2={"third": {"path": root, "mpgroup": "g"}},
    )


def test_the_volume_that_is_named_comes_first_then_its_group(group: Volumes) -> None:
    every = ["root@vds0", "root@vds1", "third@vds2"]
    assert names(group, vdisk(mpgroup="g")) == every
    assert names(group, vdisk(service="vds1", mpgroup="g")) == [every[1], every[0], every[2]]
    assert names(group, vdisk(volume="gone", mpgroup="g")) == every
    assert names(group, vdisk(service="gone", mpgroup="g")) == every


def test_without_a_group_there_is_one_volume(group: Volumes) -> None:
    assert names(group, vdisk()) == ["root@vds0"]
    assert names(group, vdisk(volume="gone")) == []
    assert names(group, vdisk(mpgroup="g", volume="alone")) == ["alone@vds0"], "and it is refused"


@pytest.mark.parametrize(
    ("settings", "disk", "sentence"),
    [
        ({}, vdisk(mpgroup="g"), "is not in the multipath group g"),
        ({"mpgroup": "h"}, vdisk(mpgroup="g"), "is not in the multipath group g"),
        ({"read_only": True}, vdisk(), "is read-only, and vdisk d0 is not"),
        *(
            ({"mpgroup": "g"}, vdisk(mpgroup="g", cache=cache), f"with cache {cache}")
            for cache in ("writethrough", "writeback", "unsafe")
        ),
    ],
)
async def test_what_does_not_go_together(
    settings: dict[str, Any], disk: VirtualDisk, sentence: str, tmp_path: Path
) -> None:
    volumes = serve(vds0={"root": {"path": make(tmp_path / "root"), **settings}})
    with pytest.raises(WrongState, match=sentence) as caught:
        await volumes.resolve(domain(disk))
    assert caught.value.remedy


@pytest.mark.parametrize("cache", CACHES)
async def test_every_cache_goes_with_a_volume_alone(cache: str, tmp_path: Path) -> None:
    volumes = serve(vds0={"root": make(tmp_path / "root")})
    assert await volumes.resolve(domain(vdisk(cache=cache)))


async def test_the_first_that_can_be_opened_is_taken(tmp_path: Path) -> None:
    group = {"mpgroup": "g"}
    volumes = serve(
        vds0={"root": {"path": tmp_path / "gone", **group}},
        vds1={"root": {"path": tmp_path, **group}},
        vds2={"root": {"path": make(tmp_path / "root"), **group}},
    )
    found = await volumes.resolve(domain(vdisk(mpgroup="g")))
    assert found["d0"].volume.name == "root@vds2"
    with pytest.raises(NotFound, match="root@vds0: No such file or directory") as caught:
        await volumes.resolve(domain(vdisk()))
    assert "look at its path" in caught.value.remedy
    (tmp_path / "root").unlink()
    with pytest.raises(NotFound, match=r"root@vds0: .*; root@vds1: .*; root@vds2: "):
        await volumes.resolve(domain(vdisk(mpgroup="g")))


async def test_storage_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look is given up, costs one wait for all vdisks together, and leaves the others alone."""
    asleep = __import__("threading").Event()
    real = module.probe

    def probe(path: Path, *, read_only: bool) -> Any:
        if path.name == "dead":
            asleep.wait(30)
        return real(path, read_only=read_only)

    monkeypatch.setattr(module, "probe", probe)
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.2)
    volumes = serve(
        vds0={"root": make(tmp_path / "root"), "a": tmp_path / "dead", "b": tmp_path / "dead"}
    )
    try:
        began = trio.current_time()
        with pytest.raises(NotFound, match="a@vds0: it does not answer"):
            await volumes.resolve(domain(vdisk("d1", "a"), vdisk("d2", "b"), vdisk()))
        assert trio.current_time() - began < 10
        assert await volumes.resolve(domain(vdisk()))
    finally:
        asleep.set()


async def test_storage_that_never_answers_takes_no_thread_from_other_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread for each path that hangs, however often it is asked, and more paths than there are threads."""
    asleep, entered = __import__("threading").Event(), []
    real = module.probe

    def probe(path: Path, *, read_only: bool) -> Any:
        if path.name.startswith("dead"):
            entered.append(path)
            asleep.wait(30)
        return real(path, read_only=read_only)

    monkeypatch.setattr(module, "probe", probe)
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.3)
    monkeypatch.setattr(module, "THREADS_MAX", 2)
    dead = {f"dead{n}": make(tmp_path / f"dead{n}") for n in range(4)}
    volumes = serve(vds0={"root": make(tmp_path / "root"), **dead})
    looked_at = {v.volume: v for v in volumes}

    async def fails(name: str) -> None:
        with pytest.raises(trio.TooSlowError):
            await volumes.look(looked_at[name], read_only=True, direct=False)

    try:
        for _ in range(3):
            for name in dead:
                await fails(name)
        assert sorted(entered) == sorted(dead.values())
        assert await volumes.resolve(domain(vdisk()))
    finally:
        asleep.set()
    with trio.fail_after(10):  # and it is looked at again once it has answered
        while True:
            try:
                assert await volumes.look(looked_at["dead0"], read_only=True, direct=False)
            except trio.TooSlowError:
                await trio.sleep(0.01)
            else:
                break
    volumes._find_hanging()
    assert volumes._threads.total_tokens == 2


async def test_a_look_that_waits_for_another_is_no_hanging_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several look at one volume at once, more than there are threads, and each is answered."""
    entered, go_on = trio.Event(), __import__("threading").Event()
    real = module.probe

    def probe(path: Path, *, read_only: bool) -> Any:
        trio.from_thread.run_sync(entered.set)
        go_on.wait(30)
        return real(path, read_only=read_only)

    monkeypatch.setattr(module, "probe", probe)
    monkeypatch.setattr(module, "THREADS_MAX", 2)
    volumes = serve(vds0={"root": make(tmp_path / "root")})
    look = functools.partial(volumes.look, next(iter(volumes)), read_only=True, direct=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        await entered.wait()
        for _ in range(7):
            nursery.start_soon(look)
        await trio.testing.wait_all_tasks_blocked()
        go_on.set()
    assert volumes._looks == []


def test_a_group_is_in_use_by_whatever_path(group: Volumes) -> None:
    writer = attrs.evolve(domain(vdisk(service="vds1", mpgroup="g")), name="writer")
    reader = attrs.evolve(domain(vdisk(read_only=True)), name="reader")
    used = group.in_use([writer, reader])
    assert used == dict.fromkeys([("vds0", "root"), ("vds1", "root"), ("vds2", "third")], "writer")
    assert group.in_use([reader]) == {}


def test_one_path_under_two_names_is_in_use_under_both(tmp_path: Path) -> None:
    volumes = serve(vds0={"root": tmp_path / "x", "same": tmp_path / "x", "else": tmp_path / "y"})
    used = volumes.in_use([attrs.evolve(domain(vdisk()), name="writer")])
    assert used == {("vds0", "root"): "writer", ("vds0", "same"): "writer"}


def test_a_volume_that_is_not_configured_any_more_is_in_use_still(group: Volumes) -> None:
    used = group.in_use([attrs.evolve(domain(vdisk(volume="gone")), name="writer")])
    assert used == {("vds0", "gone"): "writer"}


# ---- claims ------------------------------------------------------------------------------------------------


class Pair:
    """Two hosts with a volume ``root@vds0`` each."""

    def __init__(self, here: Any, there: Any) -> None:
        self.source = Proofs("host-a", serve(vds0={"root": here}))
        self.target = Proofs("host-b", serve(vds0={"root": there}))

    async def check(
        self,
        run_state: RunState = RunState.RUNNING,
        *,
        change: Mapping[str, Any] | None = None,
        **disk: Any,
    ) -> VolumeView:
        definition = domain(vdisk(**disk))
        claims = await self.source.claim(definition, run_state, PROOF, {})
        try:
            facts: dict[str, Any] = claims.facts
            if change:
                entry = facts["storage"]["root@vds0"] | change
                facts = {
                    "storage": {"root@vds0": {k: v for k, v in entry.items() if v is not None}}
                }
            views, _ = await self.target.examine(definition, run_state, PROOF, "host-a", facts)
        finally:
            await self.source.withdraw(claims)
        return views["d0"]


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    volume = make(tmp_path / "shared" / "root.img")
    return Pair(volume, volume)


async def test_the_same_file_is_found_to_be_the_same(pair: Pair, tmp_path: Path) -> None:
    view = await pair.check()
    assert view.storage_same, view.storage_why
    assert (view.name, view.size_bytes, view.format) == ("root@vds0", SIZE_BYTES, "raw")
    assert os.listdir(tmp_path / "shared") == ["root.img"]


async def test_facts_name_no_path_and_fit_into_a_message(pair: Pair, tmp_path: Path) -> None:
    definition = domain(vdisk())
    claims = await pair.source.claim(definition, RunState.RUNNING, PROOF, {})
    assert str(tmp_path) not in repr(claims.facts)
    assert claims.facts["volumes"] == {"root@vds0": SIZE_BYTES}
    message = Check(
        migration="0" * 32,
        dry_run=True,
        force=False,
        run_state=RunState.RUNNING,
        domain={},
        new_name=None,
        facts=claims.facts,
    )
    assert codec.decode(codec.encode(message)) == message
    await pair.source.withdraw(claims)
    await pair.source.withdraw(claims)


async def test_a_claim_that_was_cancelled_leaves_nothing(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the nonce and whoever asked for it."""
    from ldmd import claims as claims_module

    put = claims_module.storage_proof.put
    written, go_on = trio.Event(), __import__("threading").Event()

    def slow_put(*arguments: Any, **named: Any) -> Any:
        wanted = named.pop("wanted")

        def ask(name: str) -> bool:
            trio.from_thread.run_sync(written.set)
            go_on.wait(10)
            return bool(wanted(name))

        return put(*arguments, **named, wanted=ask)

    monkeypatch.setattr(claims_module.storage_proof, "put", slow_put)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.source.claim, domain(vdisk()), RunState.RUNNING, PROOF, {})
        await written.wait()
        assert len(os.listdir(tmp_path / "shared")) == 2
        nursery.cancel_scope.cancel()
    go_on.set()
    with trio.fail_after(10):
        while len(os.listdir(tmp_path / "shared")) > 1:
            await trio.sleep(0.01)


@pytest.mark.parametrize("state", [RunState.RUNNING, RunState.SUSPENDED, RunState.BOUND])
async def test_another_file_is_found_to_be_another(state: RunState, tmp_path: Path) -> None:
    pair = Pair(make(tmp_path / "a" / "root.img"), make(tmp_path / "b" / "root.img"))
    view = await pair.check(state)
    assert not view.storage_same
    assert view.storage_why
    assert os.listdir(tmp_path / "a") == os.listdir(tmp_path / "b") == ["root.img"]


async def test_an_inactive_domain_has_nothing_proved(tmp_path: Path) -> None:
    pair = Pair(make(tmp_path / "a" / "root.img"), make(tmp_path / "b" / "root.img"))
    assert (await pair.check(RunState.INACTIVE)).storage_same


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"identity": None}, "cannot say which storage"),
        ({"identity": ""}, "cannot say which storage"),
        ({"identity": "x" * 513}, "cannot say which storage"),
        ({"identity": "inode\x1b1"}, "cannot say which storage"),
        ({"identity": 7}, "cannot say which storage"),
        ({"identity": None, "why": "it is gone\x1b[31m"}, "it is gone "),
        ({"identity": "inode 1"}, "and inode 1 on host-a"),
        ({"nonce": "f" * 64}, "what host-a wrote beside it is not there"),
        ({"nonce": "../../etc/passwd"}, "cannot say which storage"),
        ({"nonce": 7}, "cannot say which storage"),
        ({"nonce": None}, "host-a proves nothing"),
        ({"nonce": None, "lock": "yes"}, "host-a proves nothing"),
        ({"nonce": None, "lock": True}, "the lock that host-a has on it is not seen on host-b"),
    ],
)
async def test_what_is_not_proved_is_not_the_same(
    pair: Pair, change: dict[str, Any], why: str
) -> None:
    view = await pair.check(change=change)
    assert not view.storage_same
    assert why in view.storage_why
    assert view.storage_why.isprintable()


async def test_a_lock_proves_it_where_nothing_can_be_written(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from ldmd import storage_proof

    def refuse(*_: object) -> Any:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(storage_proof, "_put_nonce", refuse)
    assert (await pair.check()).storage_same
    other = Pair(tmp_path / "shared" / "root.img", make(tmp_path / "b" / "root.img"))
    assert not (await other.check()).storage_same


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)


@given(
    fact=PLAIN
    | st.fixed_dictionaries({}, optional=dict.fromkeys(("identity", "nonce", "lock", "why"), PLAIN))
)
@settings(max_examples=200, deadline=None)
def test_a_claim_is_measured(fact: object) -> None:
    claim = Claim.from_fact(fact)
    if claim is not None:
        assert claim.identity.isascii()
        assert claim.identity.isprintable()
        assert claim.nonce == "" or len(claim.nonce) == 64
        assert claim.lock in (True, False)


async def test_host_only_is_said_of_every_path(tmp_path: Path) -> None:
    root = make(tmp_path / "root")
    source = Proofs(
        "host-a",
        serve(
            vds0={"root": {"path": root, "mpgroup": "g"}},
            vds1={"root": {"path": root, "mpgroup": "g", "host_only": True}},
        ),
    )
    for state in RunState:
        claims = await source.claim(domain(vdisk(mpgroup="g")), state, PROOF, {})
        await source.withdraw(claims)
        assert claims.facts["storage"]["root@vds0"]["host-only"] is True


async def test_a_process_must_have_open_what_is_claimed(pair: Pair, tmp_path: Path) -> None:
    path = tmp_path / "shared" / "root.img"
    for has_it in (False, True):
        with path.open("rb") if has_it else open(os.devnull):
            claims = await pair.source.claim(
                domain(vdisk()), RunState.RUNNING, PROOF, {}, os.getpid()
            )
            await pair.source.withdraw(claims)
        assert ("identity" in claims.facts["storage"]["root@vds0"]) is has_it


# ---- two paths of one host ---------------------------------------------------------------------------------


async def found_at(volumes: Volumes, service: str) -> Found:
    (one,) = volumes.candidates(vdisk(service=service))
    return Found(volume=one, probe=await volumes.look(one, read_only=True, direct=False))


async def test_two_paths_to_one_file(tmp_path: Path) -> None:
    root = make(tmp_path / "shared" / "root.img")
    (tmp_path / "link").symlink_to(root)
    copy = make(tmp_path / "copy" / "root.img")
    larger = make(tmp_path / "larger", bytes(2 * SIZE_BYTES))
    volumes = serve(
        a={"root": root}, b={"root": tmp_path / "link"}, c={"root": copy}, d={"root": larger}
    )
    proofs = Proofs("host-a", volumes)
    first = await found_at(volumes, "a")
    assert await proofs.same_storage(first, await found_at(volumes, "b"), PROOF) == ""
    assert await proofs.same_storage(first, await found_at(volumes, "c"), PROOF)
    why = await proofs.same_storage(first, await found_at(volumes, "d"), PROOF)
    assert why == f"it has {2 * SIZE_BYTES} bytes, not {SIZE_BYTES}"
    assert os.listdir(root.parent) == ["root.img"]


async def test_two_mounts_of_one_folder_are_tried(tmp_path: Path) -> None:
    """As two mounts of one server look: nothing that this host numbers itself is equal. The nonce tells."""
    root = make(tmp_path / "shared" / "root.img")
    copy = make(tmp_path / "copy" / "root.img")
    volumes = serve(a={"root": root}, b={"root": root}, c={"root": copy})
    proofs = Proofs("host-a", volumes)
    first = await found_at(volumes, "a")
    for service, same in (("b", True), ("c", False)):
        other = await found_at(volumes, service)
        identity = attrs.evolve(
            other.probe.identity, text=first.probe.identity.text, base_key=(0, 0)
        )
        other = attrs.evolve(
            other, probe=attrs.evolve(other.probe, key=("file", 0, 0), identity=identity)
        )
        assert (await proofs.same_storage(first, other, PROOF) == "") is same
