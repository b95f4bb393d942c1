"""Why a migration went the way it went."""

from __future__ import annotations

from attrs import frozen


@frozen
class Reason:
    """The first cause, kept for journal, peer and operator."""

    code: str
    sentence: str
    remedy: str = ""
