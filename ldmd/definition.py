"""A domain's definition: what it is made of, in names from lists, never a path or an argument.

The same values travel as TOML (``ldm add-domain -i``), as JSON on the control socket, as a msgpack map in CHECK and as
JSON in the journal; ``to_document`` and ``from_document`` are the one way in and out. A definition may come from a peer:
every string is checked against a pattern, every number against a bound, and an unknown key is an error.
"""

from __future__ import annotations

import re
import tomllib
import uuid as uuidlib
from collections.abc import Mapping
from typing import Any

import attrs
import cattrs
from attrs import field, frozen
from cattrs.gen import make_dict_structure_fn, override

from ldmd.errors import DefinitionError
from ldmd.sizes import parse_size
from protocol import limits

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,62}")
MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
VARIABLE_NAME = re.compile(r"[a-z][a-z0-9?#-]{0,30}")
VARIABLE_VALUE = re.compile(r"[\x20-\x7e]{0,512}")
MEMORY_BYTES_MIN = limits.MIB
PAGE_BYTES = 4096
VCPUS_MAX = 1024
DEVICES_MAX = 64
VARIABLES_MAX = 32

FORMAT_VERSION = 1
"""Of the document; one with another version is refused, never guessed at."""
CACHES = ("none", "directsync", "writethrough", "writeback", "unsafe")
"""How a volume is cached on the host, in QEMU's words. Only the first two keep nothing in the host's page cache."""
HUGE_PAGES = ("none", "2MiB", "1GiB")
OPTIONAL_DEVICES = ("rng", "watchdog", "crypto")
MTU_DEFAULT = 1500
MTU_MIN, MTU_MAX = 68, 65_535


def _key(attribute: attrs.Attribute[Any]) -> str:
    return attribute.name.replace("_", "-")


def _matches(pattern: re.Pattern[str], what: str) -> Any:
    def check(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise ValueError(f"{_key(attribute)}: {value!r} is not {what}")

    return check


def _between(low: int, high: int) -> Any:
    def check(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(
                f"{_key(attribute)}: {value!r} is not a whole number from {low} to {high}"
            )

    return check


def _one_of(*allowed: str) -> Any:
    def check(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value not in allowed:
            raise ValueError(f"{_key(attribute)}: {value!r} is not one of {', '.join(allowed)}")

    return check


_name = _matches(NAME, "a name (a letter, then up to 62 letters, digits, '.', '_' or '-')")


_name_or_nothing = _matches(re.compile(f"({NAME.pattern})?"), "a name, or empty for none")


def valid_name(value: str) -> bool:
    return bool(NAME.fullmatch(value))


@frozen(kw_only=True)
class VirtualDisk:
    """``volume@service``: a volume that a virtual disk service of the host offers.

    ``mpgroup``: volumes of that multipath group are the same storage on other paths; any of them may serve the vdisk where
    ``volume@service`` cannot. Empty: there is no other path.
    """

    name: str = field(validator=_name)
    volume: str = field(validator=_name)
    service: str = field(validator=_name)
    read_only: bool = field(default=False, validator=attrs.validators.instance_of(bool))
    cache: str = field(default="none", validator=_one_of(*CACHES))
    mpgroup: str = field(default="", validator=_name_or_nothing)


@frozen(kw_only=True)
class VirtualNetwork:
    """A network device on one of the host's virtual switches."""

    name: str = field(validator=_name)
    switch: str = field(validator=_name)
    mac: str = field(validator=_matches(MAC, "a MAC address like 52:54:00:12:34:56, in lower case"))
    mtu: int = field(default=MTU_DEFAULT, validator=_between(MTU_MIN, MTU_MAX))


@frozen(kw_only=True)
class DomainDefinition:
    """``machine`` is a machine type of the hypervisor; ``firmware`` a name from the hypervisor's list.

    ``cpu_arch``: ``generic`` (a model that every host offers), ``native`` (this host's own), or the name of a model.
    ``mig_allowed``: whether the domain may be migrated. ``optional_devices`` are given where the hypervisor has them.
    """

    version: int = field(default=FORMAT_VERSION)
    name: str = field(validator=_name)
    uuid: str = field()
    hypervisor: str = field(validator=_name)
    machine: str = field(validator=_name)
    firmware: str = field(default="default", validator=_name)
    vcpus: int = field(default=1, validator=_between(1, VCPUS_MAX))
    memory_bytes: int = field(validator=_between(MEMORY_BYTES_MIN, limits.RAM_BYTES_MAX))
    huge_pages: str = field(default="none", validator=_one_of(*HUGE_PAGES))
    cpu_arch: str = field(default="generic", validator=_name)
    mig_allowed: bool = field(default=True, validator=attrs.validators.instance_of(bool))
    optional_devices: tuple[str, ...] = field(default=())
    vdisks: tuple[VirtualDisk, ...] = field(
        default=(), validator=attrs.validators.max_len(DEVICES_MAX)
    )
    vnets: tuple[VirtualNetwork, ...] = field(
        default=(), validator=attrs.validators.max_len(DEVICES_MAX)
    )
    variables: tuple[tuple[str, str], ...] = field(
        default=(), validator=attrs.validators.max_len(VARIABLES_MAX)
    )

    @version.validator
    def _check_version(self, _attribute: attrs.Attribute[int], value: int) -> None:
        if type(value) is not int or value != FORMAT_VERSION:
            raise ValueError(
                f"version: {value!r} is not a version of definitions that this manager reads: it reads {FORMAT_VERSION}"
            )

    @optional_devices.validator
    def _check_optional_devices(
        self, _attribute: attrs.Attribute[Any], value: tuple[str, ...]
    ) -> None:
        for device in value:
            if device not in OPTIONAL_DEVICES:
                raise ValueError(
                    f"optional-devices: {device!r} is not one of {', '.join(OPTIONAL_DEVICES)}"
                )

    @uuid.validator
    def _check_uuid(self, _attribute: attrs.Attribute[str], value: str) -> None:
        try:
            canonical = str(uuidlib.UUID(value))
        except (ValueError, AttributeError, TypeError):
            canonical = None
        if canonical != value:
            raise ValueError(f"uuid: {value!r} is not a UUID in lower case")

    @memory_bytes.validator
    def _check_memory(self, _attribute: attrs.Attribute[int], value: int) -> None:
        if value % limits.MIB:
            raise ValueError(f"memory: {value} bytes is not a whole number of MiB")

    @variables.validator
    def _check_variables(self, _attribute: object, value: tuple[tuple[str, str], ...]) -> None:
        for name, text in value:
            if not VARIABLE_NAME.fullmatch(name):
                raise ValueError(f"variables: {name!r} is not the name of a variable")
            if not VARIABLE_VALUE.fullmatch(text):
                raise ValueError(
                    f"variables: the value of {name} must be up to 512 printable ASCII characters"
                )

    def __attrs_post_init__(self) -> None:
        for kind, names in (
            ("vdisk", [d.name for d in self.vdisks]),
            ("vnet", [n.name for n in self.vnets]),
            ("MAC address", [n.mac for n in self.vnets]),
            ("volume", [f"{d.volume}@{d.service}" for d in self.vdisks]),
            ("optional device", list(self.optional_devices)),
        ):
            twice = sorted({n for n in names if names.count(n) > 1})
            if twice:
                raise ValueError(f"{kind} {twice[0]} is there twice")


_converter = cattrs.Converter(forbid_extra_keys=True)


def _strict(kind: type) -> Any:
    def structure(value: object, _type: object) -> object:
        if type(value) is not kind:
            raise ValueError(
                f"{value!r} is not {'a ' + {str: 'text', int: 'whole number', bool: 'boolean'}[kind]}"
            )
        return value

    return structure


for _kind in (str, int, bool):
    _converter.register_structure_hook(_kind, _strict(_kind))


def _variables_in(value: object, _type: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, Mapping):
        raise ValueError(f"variables: {value!r} is not a table of names and texts")
    return tuple(sorted((_strict(str)(k, str), _strict(str)(v, str)) for k, v in value.items()))


_converter.register_structure_hook_func(lambda t: t == tuple[tuple[str, str], ...], _variables_in)


def _checked(attribute: attrs.Attribute[Any]) -> Any:
    """Structure one field and check its rule at once, so that a fault hides none of another field."""

    def structure(value: object, _type: object) -> object:
        made = _converter.structure(value, attribute.type)  # type: ignore[arg-type]
        if attribute.validator is not None:
            attribute.validator(None, attribute, made)
        return made

    return structure


for _cls in (VirtualDisk, VirtualNetwork, DomainDefinition):
    _renames = {
        a.name: override(rename=_key(a), struct_hook=_checked(a))
        for a in attrs.fields(attrs.resolve_types(_cls))
    }
    _converter.register_structure_hook(
        _cls,
        make_dict_structure_fn(
            _cls,
            _converter,
            _cattrs_forbid_extra_keys=True,
            **_renames,  # type: ignore[arg-type]
        ),
    )


def _sentences(error: BaseException) -> list[str]:
    """One for each fault; attrs' own words where a value broke a rule."""

    def format_exception(fault: BaseException, kind: type | None) -> str:
        if isinstance(fault, ValueError) and not isinstance(fault, cattrs.BaseValidationError):
            return str(fault)
        return str(cattrs.v.format_exception(fault, kind)).replace("extra fields", "unknown key")

    return [
        _place(sentence)
        for sentence in cattrs.transform_error(
            error, path="definition", format_exception=format_exception
        )
    ]


def _place(sentence: str) -> str:
    """cattrs' ``WHAT @ definition.PATH`` -> ``WHAT in PATH``, with keys as they are written."""
    what, _, path = sentence.partition(" @ definition")
    path = path.removeprefix(".").replace("_", "-")
    parent, _, key = path.rpartition(".")
    if what.startswith(f"{key}: "):
        path = parent
    return f"{what} in {path}" if path else what


def from_document(document: Mapping[str, object]) -> DomainDefinition:
    """A map as ``to_document`` gives it -> the definition. Raises DefinitionError naming every fault."""
    try:
        return _converter.structure(dict(document), DomainDefinition)
    except Exception as error:
        raise DefinitionError(
            "the definition is not valid: " + "; ".join(_sentences(error))
        ) from error


def to_document(definition: DomainDefinition) -> dict[str, Any]:
    """The definition -> a map of plain values, stable across versions; keys as in TOML."""

    def plain(value: Any) -> Any:
        if attrs.has(type(value)):
            return {
                a.name.replace("_", "-"): plain(getattr(value, a.name))
                for a in attrs.fields(type(value))
            }
        if isinstance(value, tuple):
            return [plain(v) for v in value]
        return value

    document: dict[str, Any] = plain(definition)
    document["variables"] = dict(definition.variables)
    return document


def from_toml(text: str) -> DomainDefinition:
    """What an operator writes: ``memory = "512MiB"``, a uuid only if it must be that one. Raises DefinitionError."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DefinitionError(f"the definition is not TOML: {error}") from error
    document.setdefault("uuid", str(uuidlib.uuid4()))
    if "memory" in document:
        if "memory-bytes" in document:
            raise DefinitionError(
                "the definition is not valid: it has both memory and memory-bytes"
            )
        try:
            document["memory-bytes"] = parse_size(document.pop("memory"))
        except ValueError as error:
            raise DefinitionError(f"the definition is not valid: memory: {error}") from error
    return from_document(document)
