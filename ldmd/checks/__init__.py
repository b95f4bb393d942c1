"""Phase 1 as data: which check, for which states, hard or soft; one module per resource.

The protocol's version is checked before: two managers without a common one have no link (``no-common-version``).
"""

from ldmd.checks import devices, hypervisor, identity, resources, storage
from ldmd.checks.rules import CheckRule, Subject, run

ALL: tuple[CheckRule, ...] = (
    *identity.RULES,
    *hypervisor.RULES,
    *resources.RULES,
    *storage.RULES,
    *devices.RULES,
)

__all__ = ["ALL", "CheckRule", "Subject", "run"]
