"""The closed product: both shipped tables, the links between them, both copies of the domain, both journals.

Everything is a plain tuple of short strings, so that a state costs little and reads well. What is modelled follows
``ldmd/migration.py`` (actions one by one in order, at most one operation, a failed record is an event *behind* what is
queued already), ``ldmd/reception.py`` (how a link's first message finds its migration) and ``ldmd/recovery.py``.

Faults are not counted: any number of crashes, cuts, cancels and failures may come, in any order, between any two actions.
That closes because nothing else grows: at most ``LINKS_MAX`` links are not yet forgotten at a time (a new one may always be
made once the oldest is), and journals end. A host that is killed is two faults in a row: its process dies, its manager does.

LOST says that the copy may have run. It is held against what the target can know (``World.asked``): a copy that it knows not
to have run must never be lost; and where one that did not run is lost all the same, because nobody can know, the step says
so (``Step.accepted``), and ``ACCEPTED`` lists all that may be said.

Taken as given: a journal that was written stays; a message is lost only with its link, and what follows it with it; an
operation that was ended, or whose manager died, has had its effect by then or never has it; a driver keeps its contract (a
``RESUME_FAILED`` or ``RESUME_NOT_ASKED`` ran no instruction, and a suspended or cold domain's "resume" has nothing that
could definitely fail); a copy that is asked again and again may never answer (``DOMAIN_SILENT``), however long that is.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from attrs import frozen

from protocol import messages as m
from protocol.actions import GIVE_UP_POSSIBLE, Action, CloseLink, Operation, Record, Send
from protocol.events import EVENT_OF_MESSAGE, OVERRIDES, PEER_EVENTS, Event
from protocol.machine import Decision, Table
from protocol.overrides import may_override
from protocol.phases import Holding, Mode, Role
from protocol.standing import Verdict, judge

LINKS_MAX = 3

RECORD_FAILED_FIRST = True
"""Whether the runner takes RECORD_FAILED up before what is queued already; it posts it behind that (``_carry_out``)."""

DEAD = "(killed)"
FENCED = "(fenced)"
"""Killed for good, with every process of it, by a person who says so."""
UNPROVEN = "(unproven)"
"""Its host was booted: whether its journal is the latest is asked before anything is done (``ldmd/confirming.py``)."""
INTACT = "an intact copy that never ran is lost: it may have, for all that the target can know"
DIED = "a copy that died before it ran is lost: it may have, for all that the target can know"
ACCEPTED = frozenset({INTACT, DIED})
"""What LOST costs where it cannot be known. Each is a domain that ends as in a crash, and never two that run."""
ABSENT = "(none)"
"""No migration in this manager, and nothing in its journal to go on with."""


class Kind(enum.StrEnum):
    """What is moved."""

    RUNNING = "warm, running"
    SUSPENDED = "warm, suspended"
    COLD = "cold"

    @property
    def mode(self) -> Mode:
        return Mode.COLD if self is Kind.COLD else Mode.WARM


class Link(NamedTuple):
    """One link as both ends see it; ``over``: whatever is sent now is lost, what is under way may be."""

    source_open: bool
    over: bool
    target: str
    """new (its first message has not been looked at), attached, gone."""
    to_target: tuple[str, ...]
    to_source: tuple[str, ...]


class Side(NamedTuple):
    state: str
    actions: tuple[str, ...] = ()
    """Of the row that is being carried out, what is not done yet."""
    operation: str = ""
    outcome: str = ""
    """How the operation ended, when that is not taken up yet."""
    record_failed: bool = False
    """RECORD_FAILED is queued."""
    shadow: str = ""
    """A record that was reported as failed and would be read after a crash."""
    journal: tuple[str, ...] = ()


class World(NamedTuple):
    source: Side
    target: Side
    links: tuple[Link, ...]
    source_copy: str
    """live, halted, dead (by a fault), gone (destroyed)."""
    target_copy: str
    """none, receiving, complete, live, paused (by itself, after it ran), dead (by a fault), ended, gone (destroyed)."""
    ran: bool
    """The target's copy has executed, or counts as having done so."""
    asked: bool
    """The target's copy may have run, for all that its manager can know: it was told to and the outcome is unknown, or the
    manager that could have told it so was killed."""
    back: bool
    """The source's copy was resumed."""
    told: frozenset[str]
    """What an operator who asked could have been told: "source", "target"."""
    journal_lost: bool = False
    """The target's journal is a new one."""
    put_back: str = ""
    """The side whose journal was put back from an earlier moment, once."""
    latest: tuple[str, ...] = ()
    """The one that was there instead, until somebody acts on the older one."""
    trusted: bool = False
    """A person has kept what a target that lost its journal may have run."""


@frozen(eq=False)
class Rules:
    """One side's table, in words."""

    side: str
    initial: str
    rows: Mapping[tuple[str, str], tuple[str, tuple[str, ...]]]
    final: frozenset[str]
    deadlines: frozenset[str]
    decisions: Mapping[str, str]
    recovery: Mapping[str, tuple[str, tuple[str, ...]]]
    settled: Mapping[str, str]

    @classmethod
    def of(cls, table: Table[Any], mode: Mode) -> Rules:
        return cls(
            side=table.side,
            initial=str(table.initial.value),
            rows={
                (s.value, e.value): (row.next_state.value, tuple(map(word, row.actions)))
                for (s, e, row_mode), row in table.index.items()
                if row_mode is mode
            },
            final=frozenset(s.value for s in table.final),
            deadlines=frozenset(s.value for s in table.deadlines),
            decisions={s.value: _TOLD.get(d, "") for s, d in table.decisions.items()},
            recovery={
                kind.value: (state.value, tuple(map(word, actions)))
                for kind, (state, actions) in table.recovery.items()
            },
            settled={kind.value: state.value for kind, state in table.settled.items()},
        )


_KEEP = (Event.KEEP_ASKED,)
_TOLD = {Decision.SOURCE: "source", Decision.TARGET: "target", Decision.LOST: "target"}
_NAMES = {message: event.value for message, event in EVENT_OF_MESSAGE.items()} | {
    m.Checked: "CHECKED",
    m.Installed: "INSTALLED",
}
_PEER = frozenset(e.value for e in PEER_EVENTS)
_CAN_FAIL = frozenset(k.value for k in GIVE_UP_POSSIBLE)
_READINGS: Mapping[str, tuple[tuple[str, bool], ...]] = {
    "CHECKED": (("CHECKS_PASSED", False), ("CHECKS_FAILED", True)),
    "INSTALLED": (("INSTALLED", False), ("DIGEST_DIFFERS", True)),
}
"""Messages that can mean two things: (event, is it a fault)."""


def word(action: Action) -> str:
    match action:
        case Record(kind):
            return f"record {kind.value}"
        case Send(message):
            return f"send {_NAMES[message]}"
        case CloseLink():
            return "close link"
        case Operation():
            return f"begin {action.value}"
    raise AssertionError(action)


class Step(NamedTuple):
    label: str
    world: World
    fault: bool
    """Not to be relied on for getting to an end."""
    broken: tuple[str, ...] = ()
    """What this very step violates: "I3: ..."."""
    accepted: tuple[str, ...] = ()
    """Of ``ACCEPTED``: what this very step costs."""


@frozen
class Guards:
    """What the shell asks before it acts outside of the tables."""

    judge: Callable[[Role, Sequence[str], Sequence[str]], tuple[Verdict, str]] = judge
    may_override: Callable[[Event, Holding], bool] = may_override
    withdraws: bool = True
    """Whether a source that is not proven makes its target give up before it takes its domain back."""


@frozen(eq=False)
class Model:
    kind: Kind
    source: Rules
    target: Rules
    record_failed_first: bool = RECORD_FAILED_FIRST
    guards: Guards = Guards()

    @classmethod
    def of(
        cls, kind: Kind, source: Table[Any], target: Table[Any], guards: Guards | None = None
    ) -> Model:
        rules = Rules.of(source, kind.mode), Rules.of(target, kind.mode)
        return cls(kind, *rules, guards=guards or Guards())

    @property
    def start(self) -> World:
        state, actions = self.source.rows[self.source.initial, Event.START.value]
        return World(
            source=Side(state, actions),
            target=Side(ABSENT),
            links=(),
            source_copy="live" if self.kind is Kind.RUNNING else "halted",
            target_copy="none",
            ran=False,
            asked=False,
            back=False,
            told=frozenset(),
        )

    # ---- all that can happen next ----------------------------------------------------------------------

    def steps(self, w: World) -> Iterator[Step]:
        for step in self._raw_steps(w):
            yield self._settle(w, step)

    def _raw_steps(self, w: World) -> Iterator[Step]:
        for rules in (self.source, self.target):
            side = _side(w, rules)
            if side.state == DEAD:
                yield self._restart(w, rules)
                yield from self._boot(w, rules)
                yield from self._never_come_back(w, rules)
                continue
            if side.state == FENCED:
                continue
            if side.state == UNPROVEN:
                yield from self._confirm(w, rules)
                continue
            if side.state == ABSENT:
                if rules is self.target and w.journal_lost:
                    yield from self._fence(w, rules)
                continue
            if side.state not in rules.final or side.actions or w.links:
                yield Step(f"{rules.side} manager killed", self._crash(w, rules), True)
            if side.actions:
                yield from self._act(w, rules)
            elif side.state not in rules.final:
                yield from self._own_events(w, rules)
            waits = side.operation and not side.outcome and not side.record_failed
            if waits and side.state not in rules.final:
                yield from self._end_operation(w, rules)
        yield from self._link_steps(w)
        yield from self._die(w)

    def _settle(self, before: World, step: Step) -> Step:
        """After each step: tidy up, note what could be told, and look at what must never be."""
        w = self._tidy(step.world)
        broken = list(step.broken)
        told = w.told | self._tellable(w)
        if len(told) == 2 and told != before.told and not _fenced(w):
            broken.append("I5: two different answers")
        w = w._replace(told=told)
        if w.source_copy == "live" and w.target_copy == "live":
            broken.append("I1: two copies run")
        return Step(step.label, w, step.fault, tuple(broken), step.accepted)

    def _tellable(self, w: World) -> frozenset[str]:
        told = set()
        for rules in (self.source, self.target):
            side = _side(w, rules)
            answer = rules.decisions.get(side.state, "")
            ended = side.state in rules.final and not side.actions
            if answer == "target" or (answer and ended):
                told.add(answer)
        return frozenset(told)

    def _tidy(self, w: World) -> World:
        if w.source.state in self.source.final and not w.source.actions:
            w = w._replace(links=tuple(_close_source(link) for link in w.links))
        answers = w.target.state in self.target.final
        kept = tuple(
            link
            for link in w.links
            if link.source_open
            or not (
                link.target == "gone" or answers or (link.target == "new" and not link.to_target)
            )
        )
        for rules in (self.source, self.target):
            side = _side(w, rules)
            if side.state in rules.final and not side.actions and (side.operation or side.shadow):
                w = _with(w, rules, side._replace(operation="", outcome="", shadow=""))
        return w._replace(links=kept)

    # ---- one side ----------------------------------------------------------------------------------------

    def _take(self, w: World, rules: Rules, event: str) -> tuple[World, tuple[str, ...]]:
        """A step in the table."""
        side = _side(w, rules)
        row = rules.rows.get((side.state, event))
        if row is not None:
            state, actions = row
            return _with(w, rules, side._replace(state=state, actions=actions)), ()
        if event in _PEER:
            what = f"I0: honest peers, and the {rules.side} refuses {event} while {side.state}"
            return w._replace(links=_fail(w.links, rules.side)), (what,)
        what = f"I0: the {rules.side} has no row for {event} while {side.state}"
        return self._crash(w, rules), (what,)

    def _event(self, w: World, rules: Rules, event: str, *, fault: bool, label: str = "") -> Step:
        after, broken = self._take(w, rules, event)
        return Step(f"{rules.side} takes {label or event}", after, fault, broken)

    def _own_events(self, w: World, rules: Rules) -> Iterator[Step]:
        side = _side(w, rules)
        if side.outcome and not side.record_failed:  # begun after it, so queued behind it
            done = _with(w, rules, side._replace(operation="", outcome=""))
            yield self._event(done, rules, side.outcome, fault=False)
        if side.record_failed:
            done = _with(w, rules, side._replace(record_failed=False))
            yield self._event(done, rules, "RECORD_FAILED", fault=False)
            if self.record_failed_first:
                return
        elif side.state in rules.deadlines:
            yield self._event(w, rules, "DEADLINE", fault=False)
        yield self._event(w, rules, "CANCEL_ASKED", fault=True)
        for event in OVERRIDES:
            if (side.state, event.value) in rules.rows and self._may_override(w, rules, event):
                asked = w._replace(trusted=w.trusted or (w.journal_lost and event in _KEEP))
                yield self._event(asked, rules, event.value, fault=False)
        source_over = w.source.state == ABSENT or (
            w.source.state in self.source.final and not w.source.actions
        )
        if rules is self.target and source_over:
            yield self._event(w, rules, "SUPERSEDED", fault=True)

    def _act(self, w: World, rules: Rules) -> Iterator[Step]:
        side = _side(w, rules)
        action, rest = side.actions[0], side.actions[1:]
        verb, _, what = action.partition(" ")
        label = f"{rules.side}: {action}"
        done = _with(w, rules, side._replace(actions=rest))
        if verb == "record":
            yield self._record(done, rules, what)
            if what in _CAN_FAIL:
                for shadow in ("", what):
                    failed = side._replace(actions=(), record_failed=True, shadow=shadow)
                    note = " (a crash would find it written)" if shadow else ""
                    yield Step(f"{label} fails{note}", _with(w, rules, failed), True)
        elif verb == "send":
            yield Step(label, done._replace(links=_post(w.links, rules.side, what)), False)
        elif verb == "close":
            yield Step(label, done._replace(links=_close(w.links, rules.side)), False)
        else:
            begun = side._replace(actions=rest, operation=what, outcome="")
            yield Step(label, _with(w, rules, begun), False)

    def _record(self, w: World, rules: Rules, kind: str) -> Step:
        side = _side(w, rules)
        again = side.journal[-1:] == (kind,)  # not written twice
        journal = side.journal if again else (*side.journal, kind)
        w = _with(w, rules, side._replace(journal=journal, shadow=""))
        broken: tuple[str, ...] = ()
        accepted: tuple[str, ...] = ()
        if kind == "PREPARED" and self.kind is Kind.COLD:
            w = w._replace(target_copy="complete")  # the definition, in the same transaction
        elif kind == "RUNNING":
            copy = w.target_copy
            if copy == "complete" and self.kind is not Kind.RUNNING:
                copy = "live"  # nothing has to execute: from now on it is the target's to use
            w = w._replace(ran=True, target_copy=copy)
            if w.back and not _fenced(w):
                broken = ("I2: the target takes a domain that the source has resumed",)
        elif kind == "LOST":
            if not (w.ran or w.asked):
                broken = (
                    f"I3: counted as lost, and it is known that it never ran ({w.target_copy})",
                )
            elif w.target_copy == "gone" and not w.ran:
                broken = ("I3: counted as lost, and destroyed by us before it ran",)
            elif not w.ran:
                accepted = (INTACT if w.target_copy == "complete" else DIED,)
            w = w._replace(ran=w.ran or w.asked)
        if rules is self.target and kind != "COMMITTED":
            w = w._replace(asked=False)  # it is decided
        return Step(f"{rules.side}: record {kind}", w, False, broken, accepted)

    def _crash(self, w: World, rules: Rules) -> World:
        side = _side(w, rules)
        journal = side.journal
        if side.shadow and journal[-1:] != (side.shadow,):
            journal = (*journal, side.shadow)
        cut = _close_source if rules is self.source else _close_target
        w = w._replace(links=tuple(cut(link) for link in w.links))
        if side.shadow == "PREPARED" and self.kind is Kind.COLD:
            w = w._replace(target_copy="complete")
        if rules is self.target and journal[-1:] == ("COMMITTED",):
            w = w._replace(asked=True)
        return _with(w, rules, Side(DEAD, journal=journal))

    def _restart(self, w: World, rules: Rules) -> Step:
        journal = _side(w, rules).journal
        side = Side(ABSENT, journal=journal)
        broken: tuple[str, ...] = ()
        if not journal:
            pass
        elif journal[-1] != "SETTLED" and journal[-1] in rules.recovery:
            state, actions = rules.recovery[journal[-1]]
            side = Side(state, actions, journal=journal)
        elif journal[-1] == "SETTLED" and journal[-2:-1] and journal[-2] in rules.settled:
            side = Side(rules.settled[journal[-2]], journal=journal)
        else:
            broken = (f"I4: the {rules.side} cannot go on from {'+'.join(journal)}",)
        return Step(f"{rules.side} manager starts again", _with(w, rules, side), False, broken)

    # ---- operations ----------------------------------------------------------------------------------------

    def _end_operation(self, w: World, rules: Rules) -> Iterator[Step]:
        """Each way the operation can end, and with it its effect; the outcome is taken up later."""
        side = _side(w, rules)
        name = side.operation
        for outcome, after, fault, broken in self._outcomes(w, rules, name):
            ended = _with(after, rules, _side(after, rules)._replace(outcome=outcome))
            changed = after.source_copy != w.source_copy or after.target_copy != w.target_copy
            label = f"{rules.side}: {name} ends: {outcome}{', done' if changed and fault else ''}"
            if changed or name == "PROBE_DOMAIN":
                yield Step(label, ended, fault, broken)
            elif not side.actions:  # nothing happened: when it is taken up makes no difference
                over = _with(after, rules, _side(after, rules)._replace(operation="", outcome=""))
                taken, more = self._take(over, rules, outcome)
                yield Step(label, taken, fault, (*broken, *more))

    def _outcomes(
        self, w: World, rules: Rules, name: str
    ) -> Iterable[tuple[str, World, bool, tuple[str, ...]]]:
        match name:
            case "CONNECT":
                return self._connect(w)
            case "RUN_CHECKS":
                return (("CHECKS_CLEAN", w, False, ()), ("CHECKS_FOUND", w, True, ()))
            case "CREATE_DOMAIN":
                return self._create(w)
            case "SUSPEND_DOMAIN":
                return self._suspend(w)
            case "SEND_STATE":
                dead = w.source_copy == "dead"
                failed = ("STATE_FAILED", w, not dead, ())
                return (failed,) if dead else (failed, ("STATE_SENT", w, False, ()))
            case "INSTALL_STATE":
                dead = w.target_copy != "receiving"
                failed = ("INSTALL_FAILED", w, not dead, ())
                whole = w._replace(target_copy="complete")
                return (failed,) if dead else (failed, ("STATE_INSTALLED", whole, False, ()))
            case "PROBE_DOMAIN":
                return self._probe(w)
            case "RESUME_DOMAIN":
                return self._resume_source(w) if rules is self.source else self._resume_target(w)
            case "DESTROY_DOMAIN":
                return self._destroy_source(w) if rules is self.source else self._destroy_target(w)
            case "END_DOMAIN":
                return self._end(w)
        raise AssertionError(name)

    def _connect(self, w: World) -> Iterator[tuple[str, World, bool, tuple[str, ...]]]:
        again = w.source.state not in ("connecting",)  # the journal's id is known
        if w.journal_lost and again and w.target.state == ABSENT:
            yield "JOURNAL_LOST", w, False, ()
            return
        # of a fenced host that is all there is to hear
        yield "CONNECT_FAILED", w, w.target.state != FENCED, ()
        if w.target.state not in (DEAD, FENCED, UNPROVEN) and len(w.links) < LINKS_MAX:
            link = Link(True, False, "new", (), ())
            yield "CONNECTED", w._replace(links=(*w.links, link)), False, ()

    def _create(self, w: World) -> Iterator[tuple[str, World, bool, tuple[str, ...]]]:
        if self.kind is Kind.COLD:
            yield "CREATED", w, False, ()
            return
        made = w._replace(target_copy="receiving")
        told = made._replace(links=_post(w.links, "target", "PREPARE_PROGRESS"))
        yield "CREATED", told, False, ()
        yield "CREATE_FAILED", w, True, ()
        yield "CREATE_FAILED", made, True, ()

    def _suspend(self, w: World) -> Iterator[tuple[str, World, bool, tuple[str, ...]]]:
        if w.source_copy == "dead":
            yield "SUSPEND_FAILED", w, False, ()
            return
        halted = w._replace(source_copy="halted")
        yield "SUSPENDED", halted, False, ()
        yield "SUSPEND_FAILED", w, True, ()
        if halted != w:
            yield "SUSPEND_FAILED", halted, True, ()

    def _probe(self, w: World) -> Iterator[tuple[str, World, bool, tuple[str, ...]]]:
        copy = w.target_copy
        found = {
            "receiving": "DOMAIN_UNKNOWN",
            "complete": "DOMAIN_SUSPENDED",
            "paused": "DOMAIN_SUSPENDED",
            "live": "DOMAIN_RUNNING" if self.kind is Kind.RUNNING else "DOMAIN_SUSPENDED",
        }.get(copy, "DOMAIN_GONE")
        yield found, w, False, ()
        if self.kind is not Kind.COLD and found in ("DOMAIN_RUNNING", "DOMAIN_SUSPENDED"):
            yield "DOMAIN_UNKNOWN", w, True, ()
            yield "DOMAIN_SILENT", w, True, ()

    def _resume_source(self, w: World) -> Iterator[tuple[str, World, bool, tuple[str, ...]]]:
        if w.source_copy not in ("live", "halted"):
            yield "DOMAIN_GONE", w, False, ()
            return
        resumed = w._replace(source_copy="live", back=True)
        ran = w.ran and not _fenced(w)  # of an override, the person answers for it
        broken = ("I2: the source runs again after the target has",) if ran else ()
        yield "RESUMED", resumed, False, broken
        if self.kind is not Kind.COLD:
            yield "RESUME_UNKNOWN", resumed, True, broken
            yield "RESUME_UNKNOWN", w, True, ()
            yield "RESUME_NOT_ASKED", w, True, ()
            if self.kind is Kind.RUNNING:
                yield "RESUME_FAILED", w, True, ()

    def _resume_target(self, w: World) -> Iterator[tuple[str, World, bool, tuple[str, ...]]]:
        copy = w.target_copy
        if self.kind is not Kind.RUNNING:  # nothing executes; ours is what RUNNING makes ours
            there = copy in ("complete", "live") or self.kind is Kind.COLD
            yield "RESUMED" if there else "RESUME_FAILED", w, False, ()
            if there and self.kind is not Kind.COLD:
                yield "RESUME_UNKNOWN", w._replace(asked=True), True, ()
                yield "RESUME_NOT_ASKED", w, True, ()
            return
        if copy not in ("complete", "paused", "live"):
            # also one that is gone before it is asked: this resume ran no instruction
            yield "RESUME_FAILED", w, False, ()
        else:
            resumed = w._replace(target_copy="live", ran=True, asked=True)
            back = w.back and not _fenced(w)
            broken = ("I2: the target runs after the source was resumed",) if back else ()
            yield "RESUMED", resumed, False, broken
            yield "RESUME_UNKNOWN", resumed, True, broken
            yield "RESUME_UNKNOWN", w._replace(asked=True), True, ()
            yield "RESUME_NOT_ASKED", w, True, ()
            if copy != "live":
                yield "RESUME_FAILED", w, True, ()

    def _destroy_source(self, w: World) -> Iterator[tuple[str, World, bool, tuple[str, ...]]]:
        unrun = w.source_copy in ("live", "halted") and not w.ran and not _fenced(w)
        broken = ("I3: the source's copy is destroyed and the target's has not run",)
        yield from self._destroyed(w, w._replace(source_copy="gone"), broken if unrun else ())

    def _destroy_target(self, w: World) -> Iterator[tuple[str, World, bool, tuple[str, ...]]]:
        last = w.target_copy == "complete" and w.source_copy == "gone"
        ours = w.ran and w.target_copy in ("live", "paused", "complete")
        broken = ("I3: the target destroys the copy that is the domain now",)
        yield from self._destroyed(
            w, w._replace(target_copy="gone"), broken if last or ours else ()
        )

    def _destroyed(
        self, w: World, after: World, broken: tuple[str, ...]
    ) -> Iterator[tuple[str, World, bool, tuple[str, ...]]]:
        yield "DESTROYED", after, False, broken
        yield "DESTROY_FAILED", w, True, ()
        if after != w:
            yield "DESTROY_FAILED", after, True, broken

    def _end(self, w: World) -> Iterator[tuple[str, World, bool, tuple[str, ...]]]:
        yield "DESTROYED", w._replace(target_copy="ended"), False, ()
        yield "DESTROY_FAILED", w, True, ()

    # ---- what a person does ------------------------------------------------------------------------------

    def _never_come_back(self, w: World, rules: Rules) -> Iterator[Step]:
        """A host that was killed: its disk is lost, or a person makes sure that it stays off."""
        other = self.source if rules is self.target else self.target
        if _side(w, other).state == FENCED or (rules is self.source and w.journal_lost):
            return  # not both: nobody would be left to be right
        whole = not w.journal_lost and not w.put_back
        if rules is self.target and whole and w.target.journal:
            lost = w._replace(target=Side(ABSENT), journal_lost=True)
            yield Step("target comes back without its journal", lost, True)
        yield from self._fence(w, rules)

    def _fence(self, w: World, rules: Rules) -> Iterator[Step]:
        copy = "source_copy" if rules is self.source else "target_copy"
        if getattr(w, copy) in ("live", "halted", "receiving", "complete", "paused"):
            w = w._replace(**{copy: "dead"})
        fenced = _with(w, rules, Side(FENCED))
        # a person has to, where a journal was lost; otherwise it may as well come back
        yield Step(f"{rules.side} host is fenced", fenced, not w.journal_lost)

    def _fenced_peer(self, w: World, rules: Rules) -> bool:
        other = self.source if rules is self.target else self.target
        return _side(w, other).state == FENCED

    def _may_override(self, w: World, rules: Rules, event: Event) -> bool:
        """The other host is fenced, or answers and has nothing to say of it (``ldmd/witnesses.py``)."""
        if self._fenced_peer(w, rules):
            return True
        if (
            rules is self.target
        ):  # an older journal here, and a source that has settled: it does not come back
            settled = w.source.journal[-1:] == ("SETTLED",)
            return bool(w.put_back) and w.source.state in self.source.final and settled
        lost = w.journal_lost and w.target.state == ABSENT
        in_doubt = self.source.decisions[w.source.state] == ""
        return lost and in_doubt and self.guards.may_override(event, _holding(w))

    # ---- a journal that may not be the latest ------------------------------------------------------------

    def _boot(self, w: World, rules: Rules) -> Iterator[Step]:
        """The host was booted, and perhaps its journal put back from an earlier moment."""
        copy = w.source_copy if rules is self.source else w.target_copy
        if self.kind is not Kind.COLD and copy not in ("dead", "gone", "none", "ended"):
            return  # no process outlives its host
        journal = _side(w, rules).journal
        if journal and journal[-1] != "SETTLED":
            there = _with(w, rules, Side(UNPROVEN, journal=journal))
            yield Step(f"{rules.side} host is booted", there, True)
        if w.put_back or w.journal_lost:
            return  # not both: nobody would be left to be right
        for length in range(1, len(journal)):
            older = _with(w, rules, Side(UNPROVEN, journal=journal[:length]))
            older = older._replace(put_back=rules.side, latest=journal)
            if rules is self.target:
                older = older._replace(asked=journal[length - 1] == "COMMITTED")
            yield Step(f"{rules.side} is booted with its journal of {length} records", older, True)

    def _confirm(self, w: World, rules: Rules) -> Iterator[Step]:
        other = self.source if rules is self.target else self.target
        mine, theirs = _side(w, rules), _side(w, other)
        older = bool(w.latest) and w.put_back == rules.side
        if older:
            back = _with(w, rules, Side(DEAD, journal=w.latest))._replace(latest=(), put_back="")
            if rules is self.target:
                back = back._replace(asked=w.latest[-1] == "COMMITTED")
            yield Step(f"{rules.side}'s latest journal is put back", back, False)
        if theirs.state == FENCED:
            if not older:
                yield self._go_on(w, rules, "a person says that it stands")
            return
        if theirs.state == DEAD:
            return
        records = () if w.journal_lost and other is self.target else theirs.journal
        verdict, kind = self.guards.judge(Role(other.side), records, mine.journal)
        if verdict is Verdict.OLDER:
            if not older:
                what = (
                    f"I4: the latest journal of the {rules.side} is taken for an older one: {kind}"
                )
                yield Step(f"{rules.side} asks", w, False, (what,))
        elif verdict is Verdict.UNSURE:
            if not older:
                yield self._go_on(w, rules, "a person says that it is the latest")
        elif rules is self.source and mine.journal[-1] in ("PREPARING", "ABORTED"):
            yield from self._withdraw(w, records)
        else:
            yield self._go_on(w, rules, "the peer has said nothing against it")

    def _withdraw(self, w: World, records: tuple[str, ...]) -> Iterator[Step]:
        """The source goes on when the target has given up, whatever that had not looked at yet."""
        if w.journal_lost and _holding(w) is not Holding.NOTHING:
            return
        if not records or not self.guards.withdraws or w.target.state in self.target.final:
            yield self._go_on(w, self.source, "the target has given it up")
        elif not w.target.actions and (w.target.state, "CANCEL") in self.target.rows:
            links = tuple(_close_target(x) if x.target == "attached" else x for x in w.links)
            attached = w._replace(links=links)
            yield self._event(attached, self.target, "CANCEL", fault=False, label="message CANCEL")

    def _go_on(self, w: World, rules: Rules, why: str) -> Step:
        journal = _side(w, rules).journal
        state, actions = rules.recovery[journal[-1]]
        side = Side(state, actions, journal=journal)
        latest = () if w.put_back == rules.side else w.latest
        gone_on = _with(w, rules, side)._replace(latest=latest)
        return Step(f"{rules.side} goes on: {why}", gone_on, False)

    # ---- links -------------------------------------------------------------------------------------------

    def _link_steps(self, w: World) -> Iterator[Step]:
        for number, link in enumerate(w.links):
            if not link.over:
                cut = _put(w, number, link._replace(over=True))
                yield Step(f"link {number + 1} cut", cut, True)
            if link.source_open:
                yield from self._at_source(w, number, link)
            if link.target != "gone":
                yield from self._at_target(w, number, link)

    def _first(self, side: Side) -> bool:
        return side.record_failed and self.record_failed_first

    def _at_source(self, w: World, number: int, link: Link) -> Iterator[Step]:
        if w.source.actions or w.source.state in self.source.final or self._first(w.source):
            return
        if link.to_source:
            message = link.to_source[0]
            rest = _put(w, number, link._replace(to_source=link.to_source[1:]))
            for event, fault in _READINGS.get(message, ((message, False),)):
                yield self._event(rest, self.source, event, fault=fault, label=f"message {event}")
        if link.over:
            lost = _put(w, number, _close_source(link))
            yield self._event(lost, self.source, "LINK_LOST", fault=False)

    def _at_target(self, w: World, number: int, link: Link) -> Iterator[Step]:
        busy = bool(w.target.actions) or self._first(w.target)
        running = w.target.state not in (ABSENT, DEAD, FENCED, UNPROVEN, *self.target.final)
        if link.over and not (busy and link.target == "attached"):
            lost = _put(w, number, _close_target(link))
            if link.target == "attached" and running:
                yield self._event(lost, self.target, "LINK_LOST", fault=False)
            else:
                yield Step(f"target forgets link {number + 1}", lost, False)
        if not link.to_target:
            return
        message = link.to_target[0]
        if link.target == "new":
            yield self._attach(w, number, link, message)
            return
        if busy:
            return
        rest = _put(w, number, link._replace(to_target=link.to_target[1:]))
        if running:
            yield self._event(rest, self.target, message, fault=False, label=f"message {message}")
        else:
            yield self._answer(rest, number, message)

    def _attach(self, w: World, number: int, link: Link, message: str) -> Step:
        """A link's first message says which migration it is for."""
        label = f"target attaches link {number + 1}"
        if w.target.state == ABSENT:
            if message != "CHECK":
                refused = _put(w, number, _close_target(link))
                return Step(f"target knows no migration for {message}", refused, False)
            begun = w._replace(target=Side(self.target.initial))
            return Step(label, _put(begun, number, link._replace(target="attached")), False)
        if message == "CHECK" or (w.target.state in self.target.final and not w.target.journal):
            refused = _put(w, number, _close_target(link))
            return Step(f"target refuses a new link's {message}", refused, False)
        links = tuple(_close_target(x) if x.target == "attached" else x for x in w.links)
        return Step(
            label, _put(w._replace(links=links), number, link._replace(target="attached")), False
        )

    def _answer(self, w: World, number: int, message: str) -> Step:
        """From the journal: the migration has ended here."""
        label = f"target has ended and answers {message}"
        row = self.target.rows.get((w.target.state, message))
        if row is None:
            failed = _put(w, number, w.links[number]._replace(over=True))
            what = f"I0: honest peers, and the target refuses {message} after {w.target.state}"
            return Step(label, failed, False, (what,))
        link = w.links[number]
        for action in row[1]:
            verb, _, what = action.partition(" ")
            assert verb == "send", "an ended migration only speaks"
            if not link.over:
                link = link._replace(to_source=(*link.to_source, what))
        return Step(label, _put(w, number, link), False)

    # ---- the world ---------------------------------------------------------------------------------------

    def _die(self, w: World) -> Iterator[Step]:
        if self.kind is Kind.COLD:
            return
        if w.source_copy in ("live", "halted"):
            yield Step("source's process dies", w._replace(source_copy="dead"), True)
        if w.target_copy in ("receiving", "complete", "live", "paused"):
            yield Step("target's process dies", w._replace(target_copy="dead"), True)
        if w.target_copy == "live" and self.kind is Kind.RUNNING:  # an I/O error, a guest's panic
            yield Step("target's copy pauses by itself", w._replace(target_copy="paused"), True)

    # ---- the end -----------------------------------------------------------------------------------------

    def is_good_end(self, w: World) -> bool:
        """One owner, both journals terminal and agreeing, the domain there and as it was, unless a fault killed it."""
        if w.links:
            return False
        if FENCED in (w.source.state, w.target.state):
            return self._is_good_end_for_one(w)
        if w.trusted:
            return self._is_good_end_for_one(w)
        for rules in (self.source, self.target):
            side = _side(w, rules)
            if side.actions or not (side.state == ABSENT or side.state in rules.final):
                return False
            if side.journal and side.journal[-1] != "SETTLED":
                return False
        source, target = (
            ("ABORTED", *side.journal)[-2] if side.journal else "ABORTED"
            for side in (w.source, w.target)
        )
        kept = "live" if self.kind is Kind.RUNNING else "halted"
        match source, target:
            case "ABORTED", "ABORTED":
                stays = w.source_copy in ("live", "dead", kept)
                return stays and w.target_copy in ("none", "gone")
            case "COMPLETED", "RUNNING":
                return w.source_copy == "gone" and w.target_copy in ("live", "dead", "paused")
            case "COMPLETED", "LOST":
                return w.source_copy == "gone" and w.target_copy in ("ended", "dead")
        return False

    def _is_good_end_for_one(self, w: World) -> bool:
        """The other host is fenced: this one has decided, and has a copy exactly where it says that it owns the domain."""
        rules = self.target if w.source.state == FENCED else self.source
        side = _side(w, rules)
        if side.actions or not (side.state == ABSENT or side.state in rules.final):
            return False
        decision = ("ABORTED", *side.journal)[-2] if side.journal else "ABORTED"
        if side.journal and side.journal[-1] != "SETTLED":
            return False
        if rules is self.target:
            there = {"ABORTED": ("none", "gone"), "LOST": ("ended", "dead")}
            return w.target_copy in there.get(decision, ("live", "dead", "paused"))
        kept = "live" if self.kind is Kind.RUNNING else "halted"
        there: dict[str, tuple[str, ...]]
        there = {"ABORTED": ("live", "dead", kept), "COMPLETED": ("gone",)}
        if w.put_back == "source":  # it can be gone already; then what is kept is the definition
            there["ABORTED"] += ("gone",)
        return w.source_copy in there[decision]


# ---- small changes --------------------------------------------------------------------------------------


def _side(w: World, rules: Rules) -> Side:
    return w.source if rules.side == "source" else w.target


def _fenced(w: World) -> bool:
    """A person has decided, and answers for it."""
    return w.trusted or FENCED in (w.source.state, w.target.state)


def _holding(w: World) -> Holding:
    """Of a target that has lost its journal."""
    alive = w.target_copy in ("receiving", "complete", "live", "paused")
    return Holding.PROCESS if alive else Holding.NOTHING


def _with(w: World, rules: Rules, side: Side) -> World:
    return w._replace(source=side) if rules.side == "source" else w._replace(target=side)


def _put(w: World, number: int, link: Link) -> World:
    return w._replace(links=(*w.links[:number], link, *w.links[number + 1 :]))


def _close_source(link: Link) -> Link:
    if not link.source_open:
        return link
    return link._replace(source_open=False, over=True, to_source=())


def _close_target(link: Link) -> Link:
    if link.target == "gone":
        return link
    return link._replace(target="gone", over=True, to_target=())


def _is_current(link: Link, side: str) -> bool:
    return link.source_open if side == "source" else link.target == "attached"


def _post(links: tuple[Link, ...], side: str, message: str) -> tuple[Link, ...]:
    def post(link: Link) -> Link:
        if not _is_current(link, side) or link.over:
            return link
        if side == "source":
            return link._replace(to_target=(*link.to_target, message))
        return link._replace(to_source=(*link.to_source, message))

    return tuple(post(link) for link in links)


def _close(links: tuple[Link, ...], side: str) -> tuple[Link, ...]:
    close = _close_source if side == "source" else _close_target
    return tuple(close(link) if _is_current(link, side) else link for link in links)


def _fail(links: tuple[Link, ...], side: str) -> tuple[Link, ...]:
    return tuple(link._replace(over=True) if _is_current(link, side) else link for link in links)
