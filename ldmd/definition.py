"""A domain's definition: what it is made of, in names from lists, never a path or an argument.

The same values travel as TOML (``ldm add-domain -i``, ``ldm list-constraints``), as JSON on the control socket, as a
msgpack map in CHECK and as JSON in the journal; ``to_document`` and ``from_document`` are the one way in and out. A
definition may come from a peer: every string is checked against a pattern, every number against a bound, and an unknown
key is an error. All faults are named at once.
"""

from __future__ import annotations

import collections
import difflib
import re
import tomllib
import uuid as uuidlib
from collections.abc import Iterable, Mapping
from typing import Any

import attrs
import cattrs
import tomli_w
from attrs import field, frozen
from cattrs.gen import make_dict_structure_fn, override

from ldmd.errors import DefinitionError
from ldmd.sizes import format_size, parse_size
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
UNKNOWN_KEYS_NAMED = 10
"""Of each table: a peer may send as many as fit into a message."""

FORMER_KEYS = {"cpu": "cpu-arch"}
NO_UUID = "00000000-0000-0000-0000-000000000000"

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


def _no_two(**kinds: Any) -> Any:
    """``kinds``: what is said of it (``_`` for a blank) -> an item's value that no other item may have."""

    def check(_instance: object, _attribute: attrs.Attribute[Any], items: tuple[Any, ...]) -> None:
        faults = []
        for kind, value_of in kinds.items():
            counts = collections.Counter(value_of(item) for item in items)
            twice = sorted(value for value, count in counts.items() if count > 1)
            faults += [f"{kind.replace('_', ' ')} {value} is there twice" for value in twice]
        if faults:
            raise ValueError("; ".join(faults))

    return check


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
    optional_devices: tuple[str, ...] = field(
        default=(), validator=_no_two(optional_device=lambda device: device)
    )
    vdisks: tuple[VirtualDisk, ...] = field(
        default=(),
        validator=[
            attrs.validators.max_len(DEVICES_MAX),
            _no_two(vdisk=lambda d: d.name, volume=lambda d: f"{d.volume}@{d.service}"),
        ],
    )
    vnets: tuple[VirtualNetwork, ...] = field(
        default=(),
        validator=[
            attrs.validators.max_len(DEVICES_MAX),
            _no_two(vnet=lambda n: n.name, MAC_address=lambda n: n.mac),
        ],
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


def _sentences(error: BaseException, also_known: Iterable[str] = ()) -> list[str]:
    """One for each fault; attrs' own words where a value broke a rule."""

    def format_exception(fault: BaseException, kind: type | None) -> str:
        if isinstance(fault, cattrs.ForbiddenExtraKeysError):
            known = [*map(_key, attrs.fields(fault.cl)), *also_known]
            keys = sorted(fault.extra_fields, key=str)
            named = [unknown_key(key, known) for key in keys[:UNKNOWN_KEYS_NAMED]]
            if more := len(keys) - len(named):
                named.append(f"{more} more unknown keys")
            return "; ".join(named)
        if isinstance(fault, ValueError) and not isinstance(fault, cattrs.BaseValidationError):
            return str(fault)
        if isinstance(fault, KeyError):
            return "a required key is missing"
        return str(cattrs.v.format_exception(fault, kind))

    return [
        _place(sentence)
        for sentence in cattrs.transform_error(
            error, path="definition", format_exception=format_exception
        )
    ]


def unknown_key(key: object, known: Iterable[str]) -> str:
    """What is said of it, with the one that may have been meant."""
    wanted = FORMER_KEYS.get(str(key), str(key)).replace("_", "-")
    near = difflib.get_close_matches(wanted, list(known), n=1)
    return f"unknown key {key}" + (f" (is it {near[0]}?)" if near else "")


def _place(sentence: str) -> str:
    """cattrs' ``WHAT @ definition.PATH`` -> ``WHAT in PATH``, with keys as they are written."""
    what, _, path = sentence.partition(" @ definition")
    path = path.removeprefix(".").replace("_", "-")
    parent, _, key = path.rpartition(".")
    if what == "a required key is missing":
        return f"the key {key} is missing" + (f" in {parent}" if parent else "")
    if what.startswith(f"{key}: "):
        path = parent
    return f"{what} in {path}" if path else what


def _require_readable(document: Mapping[str, object]) -> None:
    """Raises DefinitionError for a newer version: what else is wrong with it, this manager cannot know."""
    version = document.get("version", FORMAT_VERSION)
    if type(version) is int and version > FORMAT_VERSION:
        raise DefinitionError(
            f"the definition has version {version} and was made for a newer manager: this one reads version"
            f" {FORMAT_VERSION}",
            remedy="use a newer manager here, or write the definition again",
        )


def _faulty(faults: Iterable[str]) -> DefinitionError:
    return DefinitionError("the definition is not valid: " + "; ".join(faults))


def from_document(document: Mapping[str, object]) -> DomainDefinition:
    """A map as ``to_document`` gives it -> the definition. Raises DefinitionError naming every fault."""
    _require_readable(document)
    try:
        return _converter.structure(dict(document), DomainDefinition)
    except Exception as error:
        raise _faulty(_sentences(error)) from error


def _plain(value: Any, *, defaults: bool) -> Any:
    if attrs.has(type(value)):
        return {
            _key(a): _plain(getattr(value, a.name), defaults=defaults)
            for a in attrs.fields(type(value))
            if defaults or getattr(value, a.name) != a.default
        }
    if isinstance(value, tuple):
        return [_plain(v, defaults=defaults) for v in value]
    return value


def to_document(definition: DomainDefinition) -> dict[str, Any]:
    """The definition -> a map of plain values, stable across versions; keys as in TOML."""
    document: dict[str, Any] = _plain(definition, defaults=True)
    document["variables"] = dict(definition.variables)
    return document


# ---- TOML: memory = "512MiB" for memory-bytes ------------------------------------------------------------


def to_toml(definition: DomainDefinition) -> str:
    """What ``from_toml`` takes back as the same definition: the version, the uuid, and nothing that is a default."""
    document = {"version": definition.version, **_plain(definition, defaults=False)}
    named = {"memory-bytes": ("memory", format_size(definition.memory_bytes))}
    document = dict(named.get(key, (key, value)) for key, value in document.items())
    if definition.variables:
        document["variables"] = dict(definition.variables)
    return tomli_w.dumps(document)


def from_toml(text: str) -> DomainDefinition:
    """What an operator writes: a uuid only if it must be that one. Raises DefinitionError."""
    return from_document(read_toml(text, uuid=str(uuidlib.uuid4())))


def read_toml(text: str, *, uuid: str | None = None) -> dict[str, Any]:
    """A document of a valid definition, with ``uuid`` where the text has none; without either it has no uuid.

    Raises DefinitionError naming every fault.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DefinitionError(f"the definition is not TOML: {error}") from error
    _require_readable(document)
    given_uuid = "uuid" in document
    document.setdefault("uuid", uuid or NO_UUID)
    faults = []
    written_as_bytes = "memory-bytes" in document
    if "memory" in document:
        memory = document.pop("memory")
        try:
            if written_as_bytes:
                raise ValueError("memory-bytes says it, too")
            document["memory-bytes"] = parse_size(memory)
        except ValueError as error:
            faults.append(f"memory: {error}")
            document["memory-bytes"] = MEMORY_BYTES_MIN  # only to see what else is wrong
    try:
        _converter.structure(document, DomainDefinition)
    except Exception as error:
        found = _sentences(error, also_known=("memory",))
        faults += [f if written_as_bytes else f.replace("memory-bytes", "memory") for f in found]
    if faults:
        raise _faulty(faults)
    if not given_uuid and uuid is None:
        del document["uuid"]
    return document
