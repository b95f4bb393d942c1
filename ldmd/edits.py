"""What an operator may ask to be changed in a definition: each is a function from a definition to the next one.

Nothing is done here, and nothing is known of the domain's state: when a change may be made, ``reconfiguration.py`` says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from ldmd.definition import (
    DomainDefinition,
    from_document,
    to_document,
    unknown_key,
)
from ldmd.errors import DefinitionError, NotFound
from ldmd.sizes import format_size

Document = dict[str, Any]
Edit = Callable[[DomainDefinition], DomainDefinition]
"""Raises DefinitionError where the result would not be valid, NotFound where it has no such part."""

SETTABLE: Final = (
    "hypervisor",
    "machine",
    "firmware",
    "vcpus",
    "memory-bytes",
    "huge-pages",
    "cpu-arch",
    "mig-allowed",
    "optional-devices",
)
"""Keys that ``set-domain`` sets; devices and variables have verbs of their own."""

DEVICES: Final = {"vdisk": "vdisks", "vnet": "vnets"}
"""Kind of device -> its list in the document."""


def _on_document(change: Callable[[Document], None]) -> Edit:
    def edit(definition: DomainDefinition) -> DomainDefinition:
        document = to_document(definition)
        change(document)
        return from_document(document)

    return edit


def set_keys(settings: Mapping[str, object]) -> Edit:
    for key in settings:
        if key not in SETTABLE:
            raise DefinitionError(unknown_key(key, SETTABLE))
    return _on_document(lambda document: document.update(settings))


def replace(document: Mapping[str, object]) -> Edit:
    """The whole definition; a uuid that it does not have stays what it was."""
    return lambda definition: from_document({"uuid": definition.uuid} | dict(document))


def rename(new_name: str) -> Edit:
    return _on_document(lambda document: document.update(name=new_name))


def add_amount(key: str, amount: int) -> Edit:
    """Of ``vcpus`` or ``memory-bytes``; less than nothing takes away."""

    def change(document: Document) -> None:
        has = document[key]
        if has + amount <= 0:
            show = format_size if key == "memory-bytes" else "{} vcpus".format
            raise DefinitionError(
                f"{document['name']} has {show(has)}: {show(-amount)} cannot be taken from it"
            )
        document[key] = has + amount

    return _on_document(change)


def add_device(kind: str, device: Mapping[str, object]) -> Edit:
    return _on_document(lambda document: document[DEVICES[kind]].append(dict(device)))


def set_device(kind: str, name: str, settings: Mapping[str, object]) -> Edit:
    def change(document: Document) -> None:
        if "name" in settings:
            raise DefinitionError(f"a {kind} keeps its name")
        _find(document, kind, name).update(settings)

    return _on_document(change)


def remove_device(kind: str, name: str) -> Edit:
    return _on_document(
        lambda document: document[DEVICES[kind]].remove(_find(document, kind, name))
    )


def _find(document: Document, kind: str, name: str) -> Document:
    for device in document[DEVICES[kind]]:
        if device["name"] == name:
            found: Document = device
            return found
    there = ", ".join(device["name"] for device in document[DEVICES[kind]]) or "none"
    raise NotFound(f"{document['name']} has no {kind} {name}", remedy=f"it has {there}")


def add_variables(variables: Mapping[str, object]) -> Edit:
    def change(document: Document) -> None:
        for name in variables:
            if name in document["variables"]:
                raise DefinitionError(
                    f"{document['name']} has the variable {name} already",
                    remedy=f"`ldm set-variable {name}=VALUE {document['name']}` gives it another value",
                )
        document["variables"].update(variables)

    return _on_document(change)


def set_variables(variables: Mapping[str, object]) -> Edit:
    return _on_document(lambda document: document["variables"].update(variables))


def remove_variables(names: Iterable[str]) -> Edit:
    wanted = list(names)

    def change(document: Document) -> None:
        for name in wanted:
            if document["variables"].pop(name, None) is None:
                there = ", ".join(document["variables"]) or "none"
                raise NotFound(
                    f"{document['name']} has no variable {name}", remedy=f"it has {there}"
                )

    return _on_document(change)
