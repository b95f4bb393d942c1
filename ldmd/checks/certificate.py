"""The certificates of both sides: a link that is made anew in the middle of it must still be had."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ldmd.checks.rules import EVERY, CheckRule, Fault, Subject

VALID_SECONDS_MIN: Final = 24 * 3600
"""Transfer has no end that is known before, and a migration in doubt is settled over a link of its own."""


def find_expires(s: Subject) -> Iterable[Fault]:
    for host, until_ms in (
        ("the source", s.fact_number("certificate-until-unix-ms")),
        (s.view.host, s.view.measured.certificate_until_unix_ms),
    ):
        if until_ms is None:
            yield Fault(
                host,
                f"it is not known until when the certificate of {host} is valid",
                f"`ldm-certs show` on {host}",
            )
            continue
        left_hours = (until_ms - s.view.measured.time_unix_ms) / 3_600_000
        if left_hours * 3600 < VALID_SECONDS_MIN:
            yield Fault(
                host,
                f"the certificate of {host} ends in {max(0.0, left_hours):.1f} hours, and a migration that is in doubt"
                " then is settled only with a new one",
                f"issue the certificate of {host} again before: ldm-certs issue",
            )


RULES = (
    CheckRule(
        code="certificate-expires",
        resource="certificate",
        summary="the certificates of both sides are valid for another day, longer than a migration may take",
        soft=EVERY,
        find=find_expires,
    ),
)
