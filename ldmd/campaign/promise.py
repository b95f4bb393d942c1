"""The promise, as a judgement: what both managers and the machine show after a run, held against what must be.

Everything here is values in, sentences out; ``ldmd/campaign/observation.py`` gathers the values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from attrs import frozen

from ldmd.campaign.logs import number_of, point_and_kind
from ldmd.fault_points import Kind


@frozen(kw_only=True)
class DomainView:
    """The domain as one manager shows it."""

    state: str
    run_state: str | None
    pid: int | None


@frozen(kw_only=True)
class MigrationView:
    """One side of a migration, as that side's journal has it; ``kinds`` are its records, oldest first."""

    id: str
    side: str
    decision: str
    settled: bool
    kinds: tuple[str, ...]
    began_unix_ms: int


@frozen(kw_only=True)
class HostView:
    """``directories``: run directories of domains. ``memory_held_bytes``: neither free nor without an owner."""

    domain: DomainView | None
    migrations: tuple[MigrationView, ...]
    open_migrations: int
    memory_held_bytes: int
    directories: tuple[str, ...]


@frozen(kw_only=True)
class Observation:
    """``processes``: of the machine, not of the managers: (host or "?", pid)."""

    hosts: Mapping[str, HostView]
    processes: tuple[tuple[str, int], ...]


@frozen(kw_only=True)
class Answer:
    """What a manager told an operator: who owns the domain after that migration."""

    verb: str
    migration: str
    decision: str


@frozen(kw_only=True)
class Expectation:
    """``start``: the host on which the domain was when the run began. ``may_end``: why the domain may have ended in this
    run, None when it must run."""

    start: str
    uuid: str
    memory_bytes: int
    may_end: str | None
    answers: tuple[Answer, ...] = ()


@frozen(kw_only=True)
class Judgement:
    """``location``: the host that has the domain, None when that is not exactly one. ``lost``: a journal says so."""

    violations: tuple[str, ...]
    location: str | None
    running: bool
    decisions: tuple[str, str]
    """Of the last migration: the source's and the target's word; ``-`` where a side knows nothing of it."""
    lost: bool


def judge(seen: Observation, expected: Expectation) -> Judgement:
    """``violations`` is empty when all of it holds."""
    owners = [name for name, host in seen.hosts.items() if host.domain is not None]
    location = owners[0] if len(owners) == 1 else None
    domain = seen.hosts[location].domain if location else None
    running = domain is not None and domain.run_state == "running"
    pairs = _join_migrations(seen)
    last = pairs[-1] if pairs else {}
    violations = [
        *_judge_copies(seen, expected),
        *_judge_leftovers(seen, expected, location),
        *_judge_journals(pairs, expected, location, seen),
        *_judge_answers(pairs, expected.answers),
    ]
    return Judgement(
        violations=tuple(violations),
        location=location,
        running=running,
        decisions=(_decision(last, "source"), _decision(last, "target")),
        lost=any("LOST" in view.kinds for pair in pairs for view in pair.values()),
    )


# ---- one copy --------------------------------------------------------------------------------


def _judge_copies(seen: Observation, expected: Expectation) -> Iterator[str]:
    if len(seen.processes) > 1:
        where = ", ".join(f"{pid} on {host}" for host, pid in seen.processes)
        yield f"{len(seen.processes)} processes of the domain live: {where}"
    owners = {name: host.domain for name, host in seen.hosts.items() if host.domain is not None}
    if len(owners) != 1:
        yield f"{len(owners)} managers have the domain: {', '.join(owners) or 'none'}"
    runners = [name for name, domain in owners.items() if domain.run_state == "running"]
    if len(runners) > 1:
        yield f"two copies run, say the managers: {', '.join(runners)}"
    if not runners and expected.may_end is None:
        said = ", ".join(f"{n}: {d.state}, {d.run_state}" for n, d in owners.items()) or "nothing"
        yield f"no copy runs ({said})"
    for name, domain in owners.items():
        yield from _judge_copy(name, domain, seen.processes, expected)


def _judge_copy(
    name: str,
    domain: DomainView,
    processes: Sequence[tuple[str, int]],
    expected: Expectation,
) -> Iterator[str]:
    if domain.run_state == "running" and (name, domain.pid) not in processes:
        yield f"{name} says that {domain.pid} runs the domain; on this machine that is not so"
    ended = expected.may_end is not None and domain.state == "bound"
    if domain.run_state != "running" and not ended and expected.may_end is not None:
        yield f"the domain on {name} has ended and is {domain.state}, {domain.run_state}"
    if domain.state != "active" and processes:
        yield f"the domain on {name} is {domain.state}, and a process of it lives"


def _judge_leftovers(
    seen: Observation, expected: Expectation, location: str | None
) -> Iterator[str]:
    for name, host in seen.hosts.items():
        if host.open_migrations:
            yield f"{host.open_migrations} migrations are open on {name}"
        active = name == location and host.domain is not None and host.domain.state == "active"
        wanted = (expected.uuid,) if active else ()
        if host.directories != wanted:
            yield f"run directories on {name}: {', '.join(host.directories) or 'none'}"
        held_bytes = expected.memory_bytes if name == location else 0
        if host.memory_held_bytes != held_bytes:
            yield f"{name} holds {host.memory_held_bytes} bytes of memory, not {held_bytes}"


# ---- the journals ----------------------------------------------------------------------------

Sides = Mapping[str, MigrationView]
"""One migration: side -> what that side's journal has."""


def _join_migrations(seen: Observation) -> list[Sides]:
    """In the order in which they began."""
    joined: dict[str, dict[str, MigrationView]] = {}
    for host in seen.hosts.values():
        for view in host.migrations:
            joined.setdefault(view.id, {})[view.side] = view
    return sorted(joined.values(), key=lambda pair: min(v.began_unix_ms for v in pair.values()))


def _decision(pair: Sides, side: str) -> str:
    if side not in pair:
        return "-"
    return "lost" if "LOST" in pair[side].kinds else pair[side].decision


def _judge_journals(
    pairs: Iterable[Sides], expected: Expectation, location: str | None, seen: Observation
) -> Iterator[str]:
    hosts = list(seen.hosts)
    owner = expected.start
    for pair in pairs:
        decisions = {view.decision for view in pair.values()}
        words = ", ".join(f"the {side} says {view.decision}" for side, view in pair.items())
        name = next(iter(pair.values())).id[:8]
        yield from (
            f"migration {name} is not settled at the {side}"
            for side, view in pair.items()
            if not view.settled
        )
        if len(decisions) > 1:
            yield f"the journals disagree on {name}: {words}"
        elif len(pair) == 1 and decisions != {"source"}:
            yield f"only one journal knows of {name}: {words}"
        if "LOST" in _kinds(pair) and expected.may_end is None:
            yield f"migration {name} ended with LOST, and nothing that went wrong justifies it"
        if decisions == {"target"}:
            owner = next(host for host in hosts if host != owner)
    if location is not None and location != owner:
        yield f"by the journals the domain is on {owner}, and it is on {location}"


def _kinds(pair: Sides) -> set[str]:
    return {kind for view in pair.values() for kind in view.kinds}


def _judge_answers(pairs: Iterable[Sides], answers: Iterable[Answer]) -> Iterator[str]:
    """An operator who was answered was told the truth."""
    known = {view.id: view.decision for pair in pairs for view in pair.values()}
    for answer in answers:
        # a migration that never began has no record: the domain stayed
        decision = known.get(answer.migration, "source")
        if answer.decision != decision:
            yield (
                f"{answer.verb} was answered with {answer.decision}; the journals say {decision}"
                f" of {answer.migration[:8]}"
            )


# ---- when a domain may end -------------------------------------------------------------------

OVERDUE: Final = 0.75
"""Delays of one operation that take so much of its limit can make it miss that: it takes time itself."""


def find_reason_to_end(
    fired: Sequence[str], *, target_restarted: bool, killed: bool, operation_seconds: float
) -> str | None:
    """Why the domain may have ended in a run; None when nothing that went wrong justifies it.

    ``fired``: faults of both managers. The target says LOST where a resume may have happened and cannot be found out: the
    looks at the copy were made to fail, one after the other; or the copy is to be resumed a second time, and that definitely
    fails.
    """
    if killed:
        return "its process was killed"
    at = {point_and_kind(fault) for fault in fired}
    doubtful = frozenset({Kind.UNKNOWN, Kind.HANG})

    def made_unknown(operation: str) -> bool:
        points = [(p, k) for p, k in at if p.startswith(operation)]
        delays = [number_of(f) for f in fired if f.startswith(operation) and "=delay" in f]
        return any(k in doubtful for _, k in points) or sum(delays) >= operation_seconds * OVERDUE

    resume_in_doubt = target_restarted or made_unknown("target.resume-domain.")
    if resume_in_doubt and made_unknown("target.probe-domain."):
        return "whether it ran was made unknown"
    if resume_in_doubt and ("target.resume-domain.before", Kind.FAIL) in at:
        return "resuming it again was made to fail"
    return None
