"""Who broke the rules: this side or the other.

    ProtocolError
     ├── LocalProtocolError    our caller asked for something the tables do not allow: a bug, caught for consoles alone
     └── RemoteProtocolError   the peer sent something that is not allowed: the link ends, with a code

The split is h11's: only the second one may ever be caused by what arrives from outside.
"""

from __future__ import annotations


class ProtocolError(Exception):
    """Base of both; never raised itself."""


class LocalProtocolError(ProtocolError, AssertionError):
    """We broke our own rules. It is a bug; the daemon stops and recovery reads the journal.

    Where it was a console's rules nothing is to be recovered: that console's link ends, and the daemon goes on.
    """


class RemoteProtocolError(ProtocolError):
    """The peer broke the rules; nothing it sent after that is looked at.

    ``code`` is one of ``ERROR_CODES`` in ``protocol/messages.py`` and goes out in the ERROR message.
    """

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(f"{sentence} [{code}]")
        self.code = code
        self.sentence = sentence
