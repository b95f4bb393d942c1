"""The verbs of the control socket that change what a domain is made of, in the words of the Logical Domains Manager."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs
import trio
from attrs import define

from ldmd import edits
from ldmd.control import Arguments, Caller, Progress, Verb
from ldmd.description import Change
from ldmd.edits import Edit
from ldmd.errors import BadRequest
from ldmd.host import Host
from ldmd.reconfiguration import cancel, reconfigure

log = logging.getLogger("ldmd.operations")

MAC_PREFIX: Final = "52:54:00"
"""Locally administered, and the one that QEMU's own addresses begin with."""


@define(eq=False)
class DefinitionVerbs:
    """Every verb answers ``{"domain", "uuid", "changes", "pending"}``: lists of what, before and after."""

    host: Host

    def verbs(self) -> dict[str, Verb]:
        verbs = {name: self._verb(name, known, make) for name, (known, make) in EDITS.items()}
        return verbs | {
            "set-definition": self.set_definition,
            "add-vnet": self.add_vnet,
            "cancel-reconf": self.cancel_reconf,
        }

    def _verb(self, name: str, known: tuple[str, ...], make: Callable[[Arguments], Edit]) -> Verb:
        async def carry_out(
            caller: Caller, arguments: Mapping[str, object], _progress: Progress
        ) -> dict[str, Any]:
            given = Arguments.of(arguments, "domain", *known)
            return await self._change(caller, name, given.text("domain"), make(given))

        return carry_out

    async def _change(self, caller: Caller, verb: str, name: str, edit: Edit) -> dict[str, Any]:
        async with self.host.domains.operation(name) as domain:
            # a client that goes away must not leave half a verb behind
            with trio.CancelScope(shield=True):
                outcome = await reconfigure(self.host.domains, domain, edit)
            log.info("%s: %s %s: %s", caller.user, verb, domain.name, _in_short(outcome.changes))
            return {
                "domain": domain.name,
                "uuid": domain.definition.uuid,
                "changes": [attrs.asdict(change) for change in outcome.changes],
                "pending": [attrs.asdict(change) for change in outcome.pending],
            }

    async def set_definition(
        self, caller: Caller, arguments: Mapping[str, object], _progress: Progress
    ) -> dict[str, Any]:
        """The whole of it, to the domain of that uuid, or of that name where the document has no uuid."""
        document = Arguments.of(arguments, "definition").document("definition")
        which = document.get("uuid", document.get("name"))
        if not isinstance(which, str):
            raise BadRequest("the definition has neither a uuid nor a name")
        return await self._change(caller, "set-domain", which, edits.replace(document))

    async def add_vnet(
        self, caller: Caller, arguments: Mapping[str, object], _progress: Progress
    ) -> dict[str, Any]:
        """A vnet without ``mac`` is given one that no domain of this host has."""
        given = Arguments.of(arguments, "domain", "vnet")
        vnet = dict(given.document("vnet"))
        if "mac" not in vnet:
            view = await self.host.inventory.view(self.host.domains)
            vnet["mac"] = make_mac(view.macs)
        edit = edits.add_device("vnet", vnet)
        return await self._change(caller, "add-vnet", given.text("domain"), edit)

    async def cancel_reconf(
        self, caller: Caller, arguments: Mapping[str, object], _progress: Progress
    ) -> dict[str, Any]:
        """``changes``: those that are not made now."""
        name = Arguments.of(arguments, "domain").text("domain")
        async with self.host.domains.operation(name) as domain:
            with trio.CancelScope(shield=True):
                changes = await cancel(self.host.domains, domain)
            log.info("%s: cancel-reconf %s: %s", caller.user, domain.name, _in_short(changes))
            return {
                "domain": domain.name,
                "uuid": domain.definition.uuid,
                "changes": [attrs.asdict(change) for change in changes],
                "pending": [],
            }


def make_mac(taken: Mapping[str, str]) -> str:
    while True:
        mac = ":".join([MAC_PREFIX, *(f"{octet:02x}" for octet in secrets.token_bytes(3))])
        if mac not in taken:
            return mac


def _in_short(changes: tuple[Change, ...]) -> str:
    return "; ".join(f"{c.what} {c.before} -> {c.after}" for c in changes) or "nothing changes"


def _amount(key: str, sign: int) -> Callable[[Arguments], Edit]:
    return lambda given: edits.add_amount(key, sign * given.positive("amount"))


def _device(kind: str) -> dict[str, tuple[tuple[str, ...], Callable[[Arguments], Edit]]]:
    return {
        f"add-{kind}": ((kind,), lambda g: edits.add_device(kind, g.document(kind))),
        f"set-{kind}": (
            ("name", "settings"),
            lambda g: edits.set_device(kind, g.text("name"), g.document("settings")),
        ),
        f"remove-{kind}": (("name",), lambda g: edits.remove_device(kind, g.text("name"))),
    }


EDITS: Final[Mapping[str, tuple[tuple[str, ...], Callable[[Arguments], Edit]]]] = {
    "set-domain": (("settings",), lambda g: edits.set_keys(g.document("settings"))),
    "rename-domain": (("new_name",), lambda g: edits.rename(g.text("new_name"))),
    "add-vcpu": (("amount",), _amount("vcpus", 1)),
    "remove-vcpu": (("amount",), _amount("vcpus", -1)),
    "add-memory": (("amount",), _amount("memory-bytes", 1)),
    "remove-memory": (("amount",), _amount("memory-bytes", -1)),
    **_device("vdisk"),
    **_device("vnet"),
    "add-variable": (("variables",), lambda g: edits.add_variables(g.document("variables"))),
    "set-variable": (("variables",), lambda g: edits.set_variables(g.document("variables"))),
    "remove-variable": (("names",), lambda g: edits.remove_variables(g.texts("names"))),
}
"""Verb -> its arguments beside ``domain``, and the change that they ask for."""
