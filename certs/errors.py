"""What can go wrong with certificates; every error says what to do and has an exit status.

CertificateError          65  a file, name or certificate is not what it should be
 ├── AlreadyThere         73  a file would be overwritten
 ├── NotThere             66  a file is missing
 └── NoPermission         77  the operating system does not let us
"""

from __future__ import annotations

from typing import ClassVar


class CertificateError(Exception):
    """``sentence`` says what is wrong, ``remedy`` what to do about it (may be empty)."""

    exit_status: ClassVar[int] = 65  # EX_DATAERR of sysexits.h

    def __init__(self, sentence: str, *, remedy: str = "") -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.remedy = remedy


class AlreadyThere(CertificateError):
    exit_status = 73  # EX_CANTCREAT


class NotThere(CertificateError):
    exit_status = 66  # EX_NOINPUT


class NoPermission(CertificateError):
    exit_status = 77  # EX_NOPERM
