"""Whether two volumes are the same storage: what a source claims of its own, and how a target examines that.

A *claim* is a text for each volume (``storage_identity.py``) and, where that ends in a file, something put there that only
the same file's host can see (``storage_proof.py``). It travels in the facts of CHECK and names no path. The same proof tells
whether two volumes of one host are paths to one storage.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import trio
from attrs import define, field, frozen

from ldmd import storage_proof
from ldmd.definition import DomainDefinition, VirtualDisk
from ldmd.storage_identity import TEXT_LENGTH_MAX, NotKnown, Probe
from ldmd.volumes import Found, Volumes, words
from protocol.codec import make_printable
from protocol.phases import RunState

log = logging.getLogger("ldmd.claims")

FORMAT: Final = "raw"
"""All that volumes can be now; said, so that another one is noticed."""
IDENTITY: Final = re.compile(rf"[\x20-\x7e]{{1,{TEXT_LENGTH_MAX}}}")
WHY_LENGTH_MAX: Final = 200
SENTENCE_BYTES_MAX: Final = 400
"""Of what a finding says of one volume: all findings go into one message."""


@frozen(kw_only=True)
class VolumeView:
    """What the checks look at: one vdisk of a domain that may come, and the volume that would serve it here.

    ``name``: empty when the configuration has none. ``why``: why none can be opened; empty when one can.
    ``storage``: whether it is what the source claims; ``storage_why`` says why not.
    """

    name: str = ""
    why: str = ""
    size_bytes: int = 0
    format: str = FORMAT
    read_only: bool = False
    group: str = ""
    direct: bool = True
    storage_same: bool = False
    storage_why: str = ""


@frozen(kw_only=True)
class Claim:
    """What a peer says of the storage of one of its volumes, measured. ``nonce`` is empty for a lock."""

    identity: str
    nonce: str
    lock: bool

    @classmethod
    def from_fact(cls, fact: object) -> Claim | None:
        """None when it is not one."""
        if not isinstance(fact, Mapping):
            return None
        identity, nonce, lock = (fact.get(key) for key in ("identity", "nonce", "lock"))
        if not isinstance(identity, str) or not IDENTITY.fullmatch(identity):
            return None
        if nonce is None:
            nonce = ""
        elif not isinstance(nonce, str) or not storage_proof.NONCE.fullmatch(nonce):
            return None
        return cls(identity=identity, nonce=nonce, lock=lock is True)


@define(eq=False)
class Claims:
    """``facts``: for CHECK. What was put there (``tokens``) stays until ``Proofs.withdraw``."""

    facts: dict[str, dict[str, Any]] = field(factory=lambda: {"volumes": {}, "storage": {}})
    tokens: list[tuple[str, storage_proof.Token]] = field(factory=list)
    living: set[str] = field(factory=set)


@define(eq=False)
class Proofs:
    """``host``: this host's name, which its nonces bear."""

    host: str
    volumes: Volumes
    _living: list[set[str]] = field(factory=list, init=False)
    """Names of nonces that somebody waits for, by claim."""

    # ---- the source --------------------------------------------------------------------------------------

    async def claim(
        self,
        definition: DomainDefinition,
        run_state: RunState,
        proof: str,
        in_use: Mapping[str, str],
        pid: int | None = None,
    ) -> Claims:
        """What CHECK says of the volumes of a domain. ``in_use``: vdisk -> the volume that serves it now. ``pid``: of an
        active domain's process, which must have open what the names lead to.

        An inactive domain uses no storage, so nothing is proved for it.
        """
        claims = Claims()
        self._living.append(claims.living)

        async def one(disk: VirtualDisk) -> None:
            name = f"{disk.volume}@{disk.service}"
            candidates = self.volumes.candidates(disk)
            if not candidates:
                return
            entry: dict[str, Any] = {
                "format": FORMAT,
                "host-only": any(v.settings.host_only for v in candidates),
            }
            claims.facts["storage"][name] = entry
            found = await self.volumes.find(disk, in_use.get(disk.name))
            if isinstance(found, str):
                return
            claims.facts["volumes"][name] = found.probe.size_bytes
            entry["direct"] = found.probe.direct
            if run_state is RunState.INACTIVE:
                return
            if pid is not None and not await self.volumes.is_open_in(pid, found.probe.key):
                entry["why"] = (
                    "the domain has something else open than what the volume's path leads to"
                )
                return
            await self._prove(found.probe, proof, name, claims, entry)

        try:
            await self.volumes.of_each(definition, one)
        except BaseException:
            await self.withdraw(claims)
            raise
        return claims

    async def _prove(
        self, seen: Probe, proof: str, label: str, claims: Claims, entry: dict[str, Any]
    ) -> None:
        identity = seen.identity
        if not identity.text:
            entry["why"] = make_printable(identity.why, WHY_LENGTH_MAX)
            return
        if identity.base is not None:
            try:
                token = await self._put(identity.base, proof, label, claims.living)
            except (OSError, NotKnown, trio.TooSlowError) as error:
                entry["why"] = make_printable(words(error), WHY_LENGTH_MAX)
                return
            claims.tokens.append((label, token))
            entry |= {"nonce": token.nonce} if token.nonce else {"lock": True}
        entry["identity"] = identity.text

    async def _put(
        self, base: Path, proof: str, label: str, living: set[str]
    ) -> storage_proof.Token:
        name = storage_proof.nonce_name(self.host, proof, base.name)
        living.add(name)
        put = functools.partial(
            storage_proof.put, base, self.host, proof, label, wanted=living.__contains__
        )
        try:
            return await self.volumes.in_thread(put, about=base)
        except BaseException:
            living.discard(name)  # a thread that was left alone removes what it makes
            raise

    async def withdraw(self, claims: Claims) -> None:
        """Take away what was put there. Idempotent; to its end even when cancelled, but for storage that does not answer."""
        tokens, claims.tokens = claims.tokens, []
        with trio.CancelScope(shield=True):
            for name, token in tokens:
                try:
                    await self.volumes.in_thread(token.remove, about=token)
                except (OSError, trio.TooSlowError) as error:
                    log.error(
                        "the nonce for %s stays until this manager starts again: %s",
                        name,
                        words(error),
                    )
        self._living = [names for names in self._living if names is not claims.living]

    async def sweep(self) -> None:
        """At start: remove what an earlier manager of this host left beside its volumes."""
        for volume in self.volumes:
            sweep = functools.partial(
                storage_proof.sweep, volume.settings.path, self.host, self._is_living
            )
            try:
                for path in await self.volumes.in_thread(sweep, about=volume.settings.path):
                    log.warning("removed %s: an earlier manager left it", path)
            except (OSError, trio.TooSlowError) as error:
                log.info("leftovers beside %s are not looked for: %s", volume.name, words(error))

    def _is_living(self, name: str) -> bool:
        return any(name in names for names in self._living)

    # ---- the target --------------------------------------------------------------------------------------

    async def examine(
        self,
        definition: DomainDefinition,
        run_state: RunState,
        proof: str,
        source: str,
        facts: Mapping[str, object],
    ) -> tuple[dict[str, VolumeView], dict[str, Found]]:
        """Each vdisk as this host would serve it, against what the source claims; and what was found for each."""
        table = facts.get("storage")
        claimed: Mapping[str, object] = table if isinstance(table, Mapping) else {}
        found: dict[str, Found] = {}

        async def one(disk: VirtualDisk) -> VolumeView:
            candidates = self.volumes.candidates(disk)
            if not candidates:
                return VolumeView()
            answer = await self.volumes.find(disk)
            if isinstance(answer, str):
                why = make_printable(answer, SENTENCE_BYTES_MAX)
                return VolumeView(name=candidates[0].name, why=why)
            found[disk.name] = answer
            settings, seen = answer.volume.settings, answer.probe
            label = f"{disk.volume}@{disk.service}"
            why = ""
            if run_state is not RunState.INACTIVE:
                why = await self._compare(seen, claimed.get(label), proof, label, source)
            return VolumeView(
                name=answer.volume.name,
                size_bytes=seen.size_bytes,
                read_only=settings.read_only,
                group=settings.mpgroup,
                direct=seen.direct,
                storage_same=not why,
                storage_why=make_printable(why, SENTENCE_BYTES_MAX),
            )

        views = await self.volumes.of_each(definition, one)
        return dict(zip((d.name for d in definition.vdisks), views, strict=True)), found

    async def _compare(self, seen: Probe, fact: object, proof: str, label: str, source: str) -> str:
        """Why it is not known to be the same storage; empty when it is."""
        claim = Claim.from_fact(fact)
        identity = seen.identity
        if claim is None:
            why = fact.get("why") if isinstance(fact, Mapping) else None
            return f"{source} cannot say which storage it is there" + (
                f": {make_printable(why, WHY_LENGTH_MAX)}" if isinstance(why, str) and why else ""
            )
        if not identity.text:
            return f"which storage it is on {self.host} cannot be told: {identity.why}"
        if claim.identity != identity.text:
            return f"it is {_short(identity.text)} on {self.host} and {_short(claim.identity)} on {source}"
        if identity.base is None:
            return ""
        if claim.nonce:
            look = functools.partial(
                storage_proof.has_nonce, identity.base, source, proof, claim.nonce
            )
            failed = f"what {source} wrote beside it is not there"
        elif claim.lock:
            look = functools.partial(storage_proof.has_lock, identity.base, proof, label)
            failed = f"the lock that {source} has on it is not seen on {self.host}"
        else:
            return f"{source} proves nothing"
        try:
            return "" if await self.volumes.in_thread(look, about=identity.base) else failed
        except (OSError, NotKnown, trio.TooSlowError) as error:
            return f"it cannot be told: {words(error)}"

    # ---- two paths of this host ----------------------------------------------------------------------------

    async def same_storage(self, one: Found, other: Found, proof: str) -> str:
        """Why two volumes here are not known to be the same storage; empty when they are. ``one`` must answer."""
        if why := differ(one.probe, other.probe):
            return why
        if certain(one.probe, other.probe):
            return ""
        base = other.probe.identity.base
        assert base is not None, "else it would be certain"
        claims = Claims()
        entry: dict[str, Any] = {}
        self._living.append(claims.living)
        try:
            await self._prove(one.probe, proof, one.volume.name, claims, entry)
            return await self._compare(other.probe, entry, proof, one.volume.name, self.host)
        finally:
            await self.withdraw(claims)


def differ(one: Probe, other: Probe) -> str:
    """Why two paths cannot be one storage; empty when they may be."""
    if one.size_bytes != other.size_bytes:
        return f"it has {other.size_bytes} bytes, not {one.size_bytes}"
    if one.key == other.key:
        return ""
    for identity in (one.identity, other.identity):
        if not identity.text:
            return f"which storage it is cannot be told: {identity.why}"
    if one.identity.text != other.identity.text:
        return f"it is {_short(other.identity.text)}, not {_short(one.identity.text)}"
    return ""


def certain(one: Probe, other: Probe) -> bool:
    """Of two paths that do not differ: whether nothing has to be tried to know that they are one storage."""
    if one.key == other.key or one.identity.base is None:
        return True
    return one.identity.base_key == other.identity.base_key


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:97]}..."
