"""Virtual network devices: switches by name, the bridges that they are, what those carry, MAC addresses."""

from __future__ import annotations

from collections.abc import Iterable

from ldmd.checks.rules import ACTIVE, BOUND, EVERY, INACTIVE, CheckRule, Fault, Subject


def find_switch_missing(s: Subject) -> Iterable[Fault]:
    for net in s.definition.vnets:
        if net.switch not in s.view.measured.switches:
            yield Fault(
                net.name,
                f"{s.view.host} has no virtual switch {net.switch}",
                f"add [vsw.{net.switch}] on {s.view.host}",
            )


def find_bridge_missing(s: Subject) -> Iterable[Fault]:
    """A manager makes no bridge: it is the host's, with addresses and cables that only its administrator knows."""
    for net in s.definition.vnets:
        switch = s.view.measured.switches.get(net.switch)
        if switch is not None and switch.mtu is None:
            yield Fault(
                net.name,
                f"the virtual switch {net.switch} is the bridge {switch.bridge}, which {s.view.host} does not have",
                f"make it on {s.view.host}: ip link add {switch.bridge} type bridge",
            )


def find_mtu_too_small(s: Subject) -> Iterable[Fault]:
    for net in s.definition.vnets:
        switch = s.view.measured.switches.get(net.switch)
        if switch is not None and switch.mtu is not None and switch.mtu < net.mtu:
            yield Fault(
                net.name,
                f"it has an MTU of {net.mtu}, and {net.switch} on {s.view.host} carries {switch.mtu}",
                f"raise the MTU of the bridge {switch.bridge} and mtu in [vsw.{net.switch}] on {s.view.host}",
            )


def find_mtu_differs(s: Subject) -> Iterable[Fault]:
    """Between the domains on a switch more may be agreed upon than a vnet says by itself."""
    for net in s.definition.vnets:
        switch = s.view.measured.switches.get(net.switch)
        if switch is None or switch.mtu is None:
            continue
        there = s.fact_size("switches", net.switch)
        if there != switch.mtu:
            yield Fault(
                net.name,
                f"{net.switch} carries an MTU of {'unknown size' if there is None else there} at the source and of"
                f" {switch.mtu} on {s.view.host}",
                f"give {net.switch} the same MTU on both hosts",
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
        summary="the target has a virtual switch of that name",
        hard=ACTIVE | BOUND,
        soft=INACTIVE,
        find=find_switch_missing,
    ),
    CheckRule(
        code="bridge-missing",
        resource="vnet",
        summary="the bridge that the switch is exists there",
        hard=ACTIVE | BOUND,
        soft=INACTIVE,
        find=find_bridge_missing,
    ),
    CheckRule(
        code="mtu-too-small",
        resource="vnet",
        summary="the switch carries the MTU of the vnet",
        hard=ACTIVE | BOUND,
        soft=INACTIVE,
        find=find_mtu_too_small,
    ),
    CheckRule(
        code="mtu-differs",
        resource="vnet",
        summary="the switch carries the same MTU as the source's",
        hard=ACTIVE | BOUND,
        soft=INACTIVE,
        forcible=True,
        find=find_mtu_differs,
    ),
    CheckRule(
        code="mac-taken",
        resource="vnet",
        summary="no domain of the target has one of its MAC addresses",
        hard=EVERY,
        find=find_mac_taken,
    ),
)
