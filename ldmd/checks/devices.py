"""Virtual network devices, by name."""

from __future__ import annotations

from collections.abc import Iterable

from ldmd.checks.rules import ACTIVE, BOUND, EVERY, INACTIVE, CheckRule, Fault, Subject


def find_switch_missing(s: Subject) -> Iterable[Fault]:
    for net in s.definition.vnets:
        if net.switch not in s.view.switches:
            yield Fault(
                net.name,
                f"{s.view.host} has no virtual switch {net.switch}",
                f"add [vsw.{net.switch}] on {s.view.host}",
            )


def find_mac_taken(s: Subject) -> Iterable[Fault]:
    for net in s.definition.vnets:
        if net.mac in s.view.macs:
            yield Fault(
                net.name,
                f"{s.view.macs[net.mac]} on {s.view.host} has the MAC address {net.mac}",
                "give one of the two another MAC address",
            )


RULES = (
    CheckRule(
        code="switch-missing",
        resource="vnet",
        hard=ACTIVE | BOUND,
        soft=INACTIVE,
        find=find_switch_missing,
    ),
    CheckRule(code="mac-taken", resource="vnet", hard=EVERY, find=find_mac_taken),
)
