"""The moments of a migration at which something is done to it from outside, one or more in every phase."""

from __future__ import annotations

from attrs import frozen


@frozen(kw_only=True)
class Moment:
    """``point``: the fault point that holds a migration there, and by its first word the side that has it.

    ``states``: of the source's and the target's table meanwhile. ``given_up``: losing the link or a manager ends it, and the
    domain goes on at the source.
    """

    name: str
    phase: str
    point: str
    states: tuple[str, str]
    given_up: bool = False

    @property
    def host(self) -> str:
        return "host-a" if self.point.startswith("source") else "host-b"

    def __str__(self) -> str:
        return self.name


MOMENTS = (
    Moment(
        name="checks",
        phase="check",
        point="target.run-checks.before",
        states=("checking", "checking"),
        given_up=True,
    ),
    Moment(
        name="create",
        phase="prepare",
        point="target.create-domain.after",
        states=("preparing", "preparing"),
        given_up=True,
    ),
    Moment(
        name="suspended",
        phase="transfer",
        point="source.send-state.before",
        states=("transferring", "receiving"),
        given_up=True,
    ),
    Moment(
        name="installed",
        phase="transfer",
        point="target.install-state.after",
        states=("verifying", "installing"),
        given_up=True,
    ),
    Moment(
        name="granted",
        phase="handoff",
        point="target.receive-handoff.before",
        states=("handing off", "ready"),
    ),
    Moment(
        name="committed",
        phase="handoff",
        point="target.record-committed.after",
        states=("handing off", "committing"),
    ),
    Moment(
        name="running",
        phase="handoff",
        point="target.send-handoff-done.before",
        states=("handing off", "running"),
    ),
    Moment(
        name="destroying",
        phase="handoff",
        point="source.destroy-domain.before",
        states=("destroying", "running"),
    ),
)

EVERY_PHASE = tuple(
    m for m in MOMENTS if m.name in ("checks", "create", "installed", "granted", "running")
)
"""Fewer of them, where each costs a wait."""
