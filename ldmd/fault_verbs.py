"""The verbs of the control socket that arm faults, for tests of the promise (docs/faults.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import define

from ldmd.control import Arguments, Caller, Progress, Verb
from ldmd.fault_points import POINTS
from ldmd.faults import Faults


@define(eq=False)
class FaultVerbs:
    faults: Faults

    def verbs(self) -> dict[str, Verb]:
        return {
            "list-faults": self.list_faults,
            "arm-fault": self.arm_fault,
            "disarm-faults": self.disarm_faults,
        }

    async def list_faults(
        self, _caller: Caller, arguments: Mapping[str, object], _progress: Progress
    ) -> dict[str, Any]:
        Arguments.of(arguments)
        return {
            "allowed": self.faults.allowed,
            "points": [
                {
                    "point": point,
                    "faults": list(kinds),
                    "armed": [str(f) for f in self.faults.armed if f.point == point],
                }
                for point, kinds in POINTS.items()
            ],
            "fired": [str(fault) for fault in self.faults.fired],
        }

    async def arm_fault(
        self, _caller: Caller, arguments: Mapping[str, object], _progress: Progress
    ) -> dict[str, Any]:
        return {"armed": str(self.faults.arm(Arguments.of(arguments, "fault").text("fault")))}

    async def disarm_faults(
        self, _caller: Caller, arguments: Mapping[str, object], _progress: Progress
    ) -> dict[str, Any]:
        """What is armed is forgotten, and what hangs or is delayed by now goes on doing so."""
        Arguments.of(arguments)
        self.faults.disarm()
        return {}
