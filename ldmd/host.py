"""What every part of the manager shares: one value, made at start."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import frozen

from ldmd import __version__
from ldmd.config import Config
from ldmd.faults import Faults
from ldmd.hypervisor.driver import Hypervisor
from ldmd.inventory import Inventory
from ldmd.journal.store import Journal
from ldmd.link.tls import TlsFiles
from ldmd.trace import Trace
from protocol import limits
from protocol.messages import FEATURE_CONSOLE, Hello

if TYPE_CHECKING:
    from ldmd.domains import Domains


@frozen(kw_only=True, eq=False)
class Host:
    config: Config
    journal: Journal
    inventory: Inventory
    hypervisors: Mapping[str, Hypervisor]
    domains: Domains
    faults: Faults
    trace: Trace
    tls_files: TlsFiles

    def hello(self) -> Hello:
        """What we say of ourselves at the start of each link."""
        return Hello(
            version_min=limits.PROTOCOL_VERSION_MIN,
            version_max=limits.PROTOCOL_VERSION_MAX,
            features=(FEATURE_CONSOLE,),
            host=self.config.host.name,
            release=__version__,
            journal=self.journal.id,
            time_unix_ms=time.time_ns() // 1_000_000,
        )
