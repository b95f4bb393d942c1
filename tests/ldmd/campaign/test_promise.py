"""The judgement finds each way in which the promise can be broken, and nothing where it holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from attrs import evolve

from ldmd.campaign.promise import (
    Answer,
    DomainView,
    Expectation,
    HostView,
    Judgement,
    MigrationView,
    Observation,
    find_reason_to_end,
    judge,
)

MIB = 1024 * 1024
RUNNING = DomainView(state="active", run_state="running", pid=42)
BOUND = DomainView(state="bound", run_state=None, pid=None)
EMPTY = HostView(domain=None, migrations=(), open_migrations=0, memory_held_bytes=0, directories=())
OWNER = HostView(
    domain=RUNNING,
    migrations=(),
    open_migrations=0,
    memory_held_bytes=4 * MIB,
    directories=("u",),
)
EXPECTED = Expectation(start="host-a", uuid="u", memory_bytes=4 * MIB, may_end=None)


def view(side: str, decision: str, *kinds: str, settled: bool = True, began: int = 1) -> Any:
    return MigrationView(
        id="m1" * 16,
        side=side,
        decision=decision,
        settled=settled,
        kinds=kinds,
        began_unix_ms=began,
    )


def moved() -> Observation:
    source = view("source", "target", "PREPARING", "GRANTED", "COMPLETED", "SETTLED")
    target = view("target", "target", "PREPARED", "COMMITTED", "RUNNING", "SETTLED")
    return Observation(
        hosts={
            "host-a": evolve(EMPTY, migrations=(source,)),
            "host-b": evolve(OWNER, migrations=(target,)),
        },
        processes=(("host-b", 42),),
    )


def lost() -> Observation:
    seen = moved()
    target = view("target", "target", "PREPARED", "COMMITTED", "LOST", "SETTLED")
    owner = evolve(OWNER, domain=BOUND, migrations=(target,), directories=())
    return evolve(seen, hosts=seen.hosts | {"host-b": owner}, processes=())


def change(seen: Observation, host: str, **what: object) -> Observation:
    return evolve(seen, hosts={**seen.hosts, host: evolve(seen.hosts[host], **what)})


def change_migration(seen: Observation, host: str, **what: object) -> Observation:
    changed = tuple(evolve(m, **what) for m in seen.hosts[host].migrations)
    return change(seen, host, migrations=changed)


def test_a_domain_that_moved_is_as_promised() -> None:
    assert judge(moved(), EXPECTED) == Judgement(
        violations=(),
        location="host-b",
        running=True,
        decisions=("target", "target"),
        lost=False,
    )


def test_a_domain_that_stayed_is_as_promised() -> None:
    source = view("source", "source", "PREPARING", "ABORTED", "SETTLED")
    seen = Observation(
        hosts={"host-a": evolve(OWNER, migrations=(source,)), "host-b": EMPTY},
        processes=(("host-a", 42),),
    )
    judgement = judge(seen, EXPECTED)
    assert judgement.violations == ()
    assert judgement.decisions == ("source", "-")


def test_two_migrations_there_and_back_end_where_it_began() -> None:
    there = moved().hosts
    back = {
        "host-a": evolve(view("target", "target", "RUNNING", "SETTLED", began=2), id="m2" * 16),
        "host-b": evolve(view("source", "target", "COMPLETED", "SETTLED", began=2), id="m2" * 16),
    }
    seen = Observation(
        hosts={
            "host-a": evolve(OWNER, migrations=(*there["host-a"].migrations, back["host-a"])),
            "host-b": evolve(EMPTY, migrations=(*there["host-b"].migrations, back["host-b"])),
        },
        processes=(("host-a", 42),),
    )
    assert judge(seen, EXPECTED).violations == ()


def test_lost_is_as_promised_only_where_it_is_justified() -> None:
    justified = evolve(EXPECTED, may_end="whether it ran was made unknown")
    judgement = judge(lost(), justified)
    assert judgement.violations == ()
    assert (judgement.lost, judgement.running, judgement.location) == (True, False, "host-b")
    assert judgement.decisions == ("target", "lost")
    words = " ".join(judge(lost(), EXPECTED).violations)
    assert "nothing that went wrong justifies it" in words
    assert "no copy runs" in words


BREAKS: dict[str, tuple[Callable[[Observation], Observation], str]] = {
    "a second process": (
        lambda seen: evolve(seen, processes=(("host-a", 41), ("host-b", 42))),
        "2 processes of the domain live",
    ),
    "a process in a directory that is gone": (
        lambda seen: evolve(seen, processes=(("?", 41), ("host-b", 42))),
        "2 processes of the domain live",
    ),
    "two managers say that it runs": (
        lambda seen: change(seen, "host-a", domain=evolve(RUNNING, pid=41)),
        "two copies run",
    ),
    "a second definition": (
        lambda seen: change(seen, "host-a", domain=BOUND),
        "2 managers have the domain",
    ),
    "no definition": (
        lambda seen: change(seen, "host-b", domain=None),
        "0 managers have the domain",
    ),
    "suspended": (
        lambda seen: change(seen, "host-b", domain=evolve(RUNNING, run_state="suspended")),
        "no copy runs",
    ),
    "ended": (
        lambda seen: evolve(change(seen, "host-b", domain=BOUND), processes=()),
        "no copy runs",
    ),
    "running only by the manager's word": (
        lambda seen: evolve(seen, processes=()),
        "on this machine that is not so",
    ),
    "another process than the manager says": (
        lambda seen: evolve(seen, processes=(("host-b", 43),)),
        "on this machine that is not so",
    ),
    "a run directory left": (
        lambda seen: change(seen, "host-a", directories=("u",)),
        "run directories on host-a: u",
    ),
    "memory still held": (
        lambda seen: change(seen, "host-a", memory_held_bytes=4 * MIB),
        "host-a holds 4194304 bytes",
    ),
    "memory not held": (
        lambda seen: change(seen, "host-b", memory_held_bytes=0),
        "host-b holds 0 bytes",
    ),
    "a migration open": (
        lambda seen: change(seen, "host-b", open_migrations=1),
        "1 migrations are open on host-b",
    ),
    "a journal not settled": (
        lambda seen: change_migration(seen, "host-a", settled=False),
        "not settled at the source",
    ),
    "journals that disagree": (
        lambda seen: change_migration(seen, "host-a", decision="source"),
        "the journals disagree",
    ),
    "a source without its journal": (
        lambda seen: change(seen, "host-a", migrations=()),
        "only one journal knows",
    ),
    "a target without its journal": (
        lambda seen: change(seen, "host-b", migrations=()),
        "only one journal knows",
    ),
    "journals that agree, and are wrong": (
        lambda seen: change_migration(
            change_migration(seen, "host-a", decision="source"), "host-b", decision="source"
        ),
        "by the journals the domain is on host-a, and it is on host-b",
    ),
}


@pytest.mark.parametrize("broken", BREAKS)
def test_each_way_to_break_the_promise_is_found(broken: str) -> None:
    break_it, words = BREAKS[broken]
    violations = judge(break_it(moved()), EXPECTED).violations
    assert any(words in violation for violation in violations), violations


def test_a_domain_whose_process_was_killed_must_be_bound_in_one_place() -> None:
    killed = evolve(EXPECTED, may_end="its process was killed")
    suspended = change(moved(), "host-b", domain=evolve(RUNNING, run_state="suspended"))
    assert any("has ended and is active" in v for v in judge(suspended, killed).violations)
    gone = change(moved(), "host-b", domain=None)
    assert any("0 managers" in v for v in judge(gone, killed).violations)


@pytest.mark.parametrize(
    ("answer", "true"),
    [
        (Answer(verb="migrate-domain", migration="m1" * 16, decision="target"), True),
        (Answer(verb="cancel-migration", migration="m1" * 16, decision="source"), False),
        # no record: it never began
        (Answer(verb="migrate-domain", migration="m3" * 16, decision="source"), True),
        (Answer(verb="migrate-domain", migration="m3" * 16, decision="target"), False),
    ],
)
def test_what_an_operator_was_told_is_held_against_the_journals(answer: Answer, true: bool) -> None:
    violations = judge(moved(), evolve(EXPECTED, answers=(answer,))).violations
    assert (violations == ()) is true
    assert all("was answered with" in violation for violation in violations)


@pytest.mark.parametrize(
    ("fired", "restarted", "killed", "justified"),
    [
        ((), False, False, False),
        ((), True, False, False),
        ((), False, True, True),
        (("target.resume-domain.after=unknown",), False, False, False),
        (("target.probe-domain.before=unknown",), False, False, False),
        (("target.probe-domain.after=hang",), True, False, True),
        (
            ("target.resume-domain.before=unknown", "target.probe-domain.before=unknown"),
            False,
            False,
            True,
        ),
        (("target.resume-domain.before=fail",), False, False, False),
        (("target.resume-domain.before=fail",), True, False, True),
        (("target.probe-domain.before=delay:0.5",), True, False, False),
        (
            ("target.probe-domain.before=delay:1.2", "target.probe-domain.after=delay:0.9"),
            True,
            False,
            True,
        ),
        (("source.resume-domain.after=unknown",), True, False, False),
    ],
)
def test_when_a_domain_may_end(
    fired: tuple[str, ...], restarted: bool, killed: bool, justified: bool
) -> None:
    reason = find_reason_to_end(
        fired, target_restarted=restarted, killed=killed, operation_seconds=2.0
    )
    assert (reason is not None) is justified
