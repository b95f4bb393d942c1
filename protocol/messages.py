"""What can be said: one frozen class per message, and the raw state chunk.

On the wire a control message is a msgpack map of its field names plus ``"type"``, the class's ``TYPE``; see
``docs/protocol.md``. Field types here are the codec's schema: ``str``, ``int``, ``bool``, ``bytes``, an enum of
strings, ``X | None``, ``tuple[X, ...]``, a nested frozen class, or ``Document`` (a map of plain values whose own
rules the daemon knows: a domain's definition, facts).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import ClassVar, Final

from attrs import frozen

from protocol.phases import Holding, Role, RunState

Document = Mapping[str, object]
"""A bounded msgpack map with string keys; nested maps, arrays, strings, ints, bools and null below."""


@frozen(kw_only=True)
class Finding:
    """One check that did not pass. ``hard`` findings stop the migration."""

    code: str
    subject: str
    sentence: str
    remedy: str
    hard: bool


@frozen(kw_only=True)
class Region:
    """One RAM region of a domain; ``size_bytes`` is a multiple of 4096."""

    name: str
    size_bytes: int


@frozen(kw_only=True)
class Trail:
    """What one host's journal says of a migration: ``kinds`` are its records, oldest first."""

    migration: str
    role: Role
    kinds: tuple[str, ...]


@frozen(kw_only=True)
class Message:
    TYPE: ClassVar[str]


# ---- session -------------------------------------------------------------------------------------------


@frozen(kw_only=True)
class Hello(Message):
    """First message of either side. The highest version both know and the common features hold."""

    TYPE = "HELLO"
    version_min: int
    version_max: int
    features: tuple[str, ...]
    host: str
    release: str
    journal: str
    time_unix_ms: int


@frozen(kw_only=True)
class Ping(Message):
    TYPE = "PING"
    nonce: int


@frozen(kw_only=True)
class Pong(Message):
    TYPE = "PONG"
    nonce: int


@frozen(kw_only=True)
class Error(Message):
    """The last message of a link: why this side ends it."""

    TYPE = "ERROR"
    code: str
    sentence: str


# ---- one migration -------------------------------------------------------------------------------------


@frozen(kw_only=True)
class MigrationMessage(Message):
    migration: str
    """32 lower-case hexadecimal digits, drawn at random by the source."""


@frozen(kw_only=True)
class Check(MigrationMessage):
    """Source: facts about the domain and its host. ``new_name`` renames it at the target. With ``force`` an operator takes
    the risk of those findings that the target lets one take.
    """

    TYPE = "CHECK"
    dry_run: bool
    force: bool
    run_state: RunState
    domain: Document
    new_name: str | None
    facts: Document


@frozen(kw_only=True)
class Checked(MigrationMessage):
    """Target: every finding at once. With no hard one, what was asked for is reserved."""

    TYPE = "CHECKED"
    findings: tuple[Finding, ...]


@frozen(kw_only=True)
class Prepare(MigrationMessage):
    """Source: create the receiving domain. ``regions`` is empty for a cold migration."""

    TYPE = "PREPARE"
    regions: tuple[Region, ...]


@frozen(kw_only=True)
class PrepareProgress(MigrationMessage):
    """Target: how much of the receiving domain's RAM is populated."""

    TYPE = "PREPARE_PROGRESS"
    done_bytes: int
    total_bytes: int


@frozen(kw_only=True)
class Prepared(MigrationMessage):
    """Target: recorded, created; state may come."""

    TYPE = "PREPARED"


@frozen(kw_only=True)
class Digest(MigrationMessage):
    """Source: every state chunk was sent; this is the digest of what left the source hypervisor."""

    TYPE = "DIGEST"
    digest: bytes
    chunks: int
    device_bytes: int


@frozen(kw_only=True)
class Installed(MigrationMessage):
    """Target: RAM and device state are in the receiving domain; ``digest`` is of what lies there."""

    TYPE = "INSTALLED"
    digest: bytes


@frozen(kw_only=True)
class Handoff(MigrationMessage):
    """Source, after its GRANTED record: decide. May be repeated for ever on any link."""

    TYPE = "HANDOFF"


@frozen(kw_only=True)
class HandoffDone(MigrationMessage):
    """Target, after its RUNNING record: the domain is ours."""

    TYPE = "HANDOFF_DONE"


@frozen(kw_only=True)
class HandoffLost(MigrationMessage):
    """Target, after its LOST record: the domain counts as having run here and ended."""

    TYPE = "HANDOFF_LOST"


@frozen(kw_only=True)
class HandoffRefused(MigrationMessage):
    """Target, after its ABORTED record: the domain is the source's and no copy exists here."""

    TYPE = "HANDOFF_REFUSED"
    code: str
    sentence: str


@frozen(kw_only=True)
class Released(MigrationMessage):
    """Source: its copy is destroyed."""

    TYPE = "RELEASED"


@frozen(kw_only=True)
class Settled(MigrationMessage):
    """Target: knows that; nothing is open on either side."""

    TYPE = "SETTLED"


@frozen(kw_only=True)
class Refused(MigrationMessage):
    """Target has given up before it was asked to decide, also because of CANCEL (code ``cancelled``); nothing of the
    domain is left there.
    """

    TYPE = "REFUSED"
    code: str
    sentence: str


@frozen(kw_only=True)
class Cancel(MigrationMessage):
    """Source has given up, and its record says so. The answer is REFUSED."""

    TYPE = "CANCEL"
    code: str
    sentence: str


# ---- one console ----------------------------------------------------------------------------------------

FEATURE_CONSOLE: Final = "console"
"""Who names it in HELLO understands the messages below."""


class ConsoleAccess(enum.StrEnum):
    READ = "read"
    WRITE = "write"
    """To type, unless somebody does already."""
    FORCE = "force"
    """To type, whoever does already."""


@frozen(kw_only=True)
class ConsoleMessage(Message):
    """On a link that carries one console and nothing else; ``protocol/console.py`` says what may come when."""


@frozen(kw_only=True)
class ConsoleOpen(ConsoleMessage):
    """Opener: show that domain's console to ``user``.

    From ``position`` on; without one, from ``replay_lines`` lines before its end. ``stay``: what CONSOLE_OPENED said of
    the same console before; without it, whatever the domain's present one is.
    """

    TYPE = "CONSOLE_OPEN"
    uuid: str
    user: str
    access: ConsoleAccess
    stay: str | None
    position: int | None
    replay_lines: int


@frozen(kw_only=True)
class ConsoleOpened(ConsoleMessage):
    """Keeper: here it is. ``stay`` names the domain's process here, ``position`` is where the output begins.

    ``writer`` is who types on it when that is not the opener.
    """

    TYPE = "CONSOLE_OPENED"
    stay: str
    position: int
    writer: str | None


@frozen(kw_only=True)
class ConsoleOutput(ConsoleMessage):
    """Keeper: what the domain printed, at ``position``. If that is beyond where the last one ended, the rest is gone."""

    TYPE = "CONSOLE_OUTPUT"
    position: int
    data: bytes


@frozen(kw_only=True)
class ConsoleInput(ConsoleMessage):
    """Opener: what its user typed."""

    TYPE = "CONSOLE_INPUT"
    data: bytes


@frozen(kw_only=True)
class ConsoleTaken(ConsoleMessage):
    """How many bytes of what the other side has sent went on: to the domain (keeper), to the user (opener); in all."""

    TYPE = "CONSOLE_TAKEN"
    count: int


@frozen(kw_only=True)
class ConsoleWriter(ConsoleMessage):
    """Keeper: who types now when it is not the opener. What the opener has typed and was not taken is dropped."""

    TYPE = "CONSOLE_WRITER"
    writer: str | None


@frozen(kw_only=True)
class ConsoleClosed(ConsoleMessage):
    """Keeper, its last message: why. ``moved_to`` is the host that the domain has moved to."""

    TYPE = "CONSOLE_CLOSED"
    code: str
    sentence: str
    moved_to: str | None


# ---- about migrations --------------------------------------------------------------------------------------


@frozen(kw_only=True)
class Ask(MigrationMessage):
    """Either side, on a link of its own: how do you stand to this migration, and to the domain? It changes nothing."""

    TYPE = "ASK"
    uuid: str


@frozen(kw_only=True)
class Standing(MigrationMessage):
    """The answer. ``trails``: the latest migrations of the domain between the two hosts that have a record, oldest first."""

    TYPE = "STANDING"
    holding: Holding
    trails: tuple[Trail, ...]


@frozen(kw_only=True, eq=False)
class StateChunk:
    """A piece of runtime state: msgpack array ``[sequence, region, offset, payload]``.

    ``region`` counts the regions of PREPARE from 0; the number after the last one is the device stream.
    ``payload`` is a view into the receive buffer, valid until the next frame is asked for.
    """

    sequence: int
    region: int
    offset: int
    payload: memoryview


MESSAGES: Final[tuple[type[Message], ...]] = (
    Hello,
    Ping,
    Pong,
    Error,
    Check,
    Checked,
    Prepare,
    PrepareProgress,
    Prepared,
    Digest,
    Installed,
    Handoff,
    HandoffDone,
    HandoffLost,
    HandoffRefused,
    Released,
    Settled,
    Refused,
    Cancel,
    ConsoleOpen,
    ConsoleOpened,
    ConsoleOutput,
    ConsoleInput,
    ConsoleTaken,
    ConsoleWriter,
    ConsoleClosed,
    Ask,
    Standing,
)

ERROR_CODES: Final[Mapping[str, str]] = {
    "bad-frame": "the bytes are not a frame: wrong first byte or a length of nothing",
    "oversize": "a frame, string, binary, array or map is longer than limits.py allows",
    "bad-msgpack": "the body is not one msgpack value, or has bytes behind it",
    "too-deep": "arrays and maps are nested deeper than limits.py allows",
    "bad-utf8": "a string is not UTF-8",
    "unknown-type": "no message has that type",
    "unknown-key": "the message has a field that its type does not have, or has one twice",
    "missing-key": "the message lacks a field of its type",
    "wrong-type": "a field has a value of another type",
    "bad-value": "a field has a value outside what it may have",
    "unexpected-message": "the message is not allowed now",
    "hello-expected": "the first message was not HELLO",
    "no-common-version": "the two managers have no protocol version in common",
    "sequence": "a state chunk is out of order, outside its region or overlaps another",
    "wrong-migration": "the message names another migration than this link carries",
    "wrong-host": "HELLO names another host than the certificate",
    "too-slow": "a deadline of the conversation passed",
    "unknown-migration": "the target has no record of that migration",
    "journal-lost": "the target's journal is not the one the migration was prepared with",
    "not-allowed": "the configuration does not let this peer do that",
    "busy": "a limit of this manager is reached, or it has not settled what comes before",
    "stopping": "the manager is stopping",
}
