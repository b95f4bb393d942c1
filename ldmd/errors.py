"""Errors by cause; each that an operator can meet has a code, an exit status and a remedy.

    LdmdError
     ├── ConfigurationError   the configuration file: names file, key and what is allowed
     ├── BadRequest           what was asked for is not a request
 ├── DefinitionError      a domain's definition
     ├── NotFound             no domain, peer, migration of that name
     ├── WrongState           the domain's state does not allow that verb
     ├── Busy                 another operation holds the domain
     ├── NotAllowed           the caller or the peer may not do that
     ├── ChecksFailed         phase 1 said no; carries the findings
     ├── MigrationFailed      gave up; the domain is at the source, as it was
     ├── InDoubt              past GRANTED without the target's answer; settles by itself
     ├── LinkError            no link, or it was lost; TLS and peer identity too
     ├── DaemonUnreachable    no manager answers on the control socket
     ├── JournalError         the journal cannot be read or written
     │    └── ReconfigurationPending  a record that would lose what an operator asked for
     ├── HypervisorError      the hypervisor definitely did not do it
     └── OutcomeUnknown       the hypervisor stopped answering: it may or may not have done it

``OutcomeUnknown`` is not a ``HypervisorError``: code that handles a definite failure must never take an unknown one
for it (the idea is qemu.qmp's).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class LdmdError(Exception):
    """``sentence`` says what is wrong, ``remedy`` what to do about it (may be empty)."""

    code: ClassVar[str] = "error"
    exit_status: ClassVar[int] = 1

    def __init__(
        self, sentence: str, *, remedy: str = "", facts: Mapping[str, object] | None = None
    ) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.remedy = remedy
        self.facts = dict(facts or {})


class ConfigurationError(LdmdError):
    code = "configuration"
    exit_status = 78  # EX_CONFIG of sysexits.h, as systemd shows it


class BadRequest(LdmdError):
    """The request is not one: not JSON, no such verb, arguments missing or of another type."""

    code = "bad-request"
    exit_status = 64  # EX_USAGE


class DefinitionError(LdmdError):
    code = "definition"
    exit_status = 65  # EX_DATAERR


class NotFound(LdmdError):
    code = "not-found"
    exit_status = 4


class WrongState(LdmdError):
    code = "wrong-state"
    exit_status = 5


class Busy(LdmdError):
    code = "busy"
    exit_status = 6


class NotAllowed(LdmdError):
    code = "not-allowed"
    exit_status = 77  # EX_NOPERM


class ChecksFailed(LdmdError):
    code = "checks-failed"
    exit_status = 1


class MigrationFailed(LdmdError):
    code = "migration-failed"
    exit_status = 1


class InDoubt(LdmdError):
    code = "in-doubt"
    exit_status = 75  # EX_TEMPFAIL: it settles when the target answers


class LinkError(LdmdError):
    code = "link"
    exit_status = 69  # EX_UNAVAILABLE


class JournalError(LdmdError):
    code = "journal"
    exit_status = 74  # EX_IOERR


class ReconfigurationPending(JournalError):
    """The domain has another definition pending, so no migration may hold it."""

    code = "reconfiguration-pending"
    exit_status = 5


class HypervisorError(LdmdError):
    code = "hypervisor"
    exit_status = 70


class OutcomeUnknown(LdmdError):
    code = "outcome-unknown"
    exit_status = 70


class DaemonUnreachable(LdmdError):
    code = "daemon-unreachable"
    exit_status = 69


def operator_error(error: BaseException) -> LdmdError | None:
    """The LdmdError that it is, or that nurseries wrapped in groups with nothing else in them."""
    if isinstance(error, LdmdError):
        return error
    if isinstance(error, BaseExceptionGroup):
        inner = [operator_error(e) for e in error.exceptions]
        if all(e is not None for e in inner):
            return inner[0]
    return None
