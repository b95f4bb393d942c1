"""The configuration file: TOML in, frozen values out, every fault at once.

A fault names the file, the key and what is allowed:
``/etc/ldmd/ldmd.toml: peers.host-b.may-send: 'yes' is not true or false``. Keys are written with
``-``; a key that is not known is a fault, with the nearest known one. Relative paths are relative
to the file's folder. Every field carries its own rule (``config_rules.py``), so that no fault hides
another.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NoReturn, TypeVar, get_args

import attrs
import cattrs
from attrs import field, frozen
from cattrs.errors import AttributeValidationNote, ForbiddenExtraKeysError, IterableValidationNote
from cattrs.gen import make_dict_structure_fn, override

from ldmd import config_rules as rules
from ldmd.errors import ConfigurationError
from ldmd.link.identity import Peer

PATH_DEFAULT: Final = Path("/etc/ldmd/ldmd.toml")
HYPERVISORS: Final = ("emulated", "qemu")

T = TypeVar("T")
_Path = Annotated[Path, rules.path]
_Seconds = Annotated[float, rules.seconds]
_Boolean = Annotated[bool, rules.boolean]


@frozen(kw_only=True)
class HostSettings:
    """``control_group`` is the group that may use the control socket; None: the daemon's own."""

    name: Annotated[str, rules.host_name]
    state_directory: _Path = Path("/var/lib/ldmd")
    run_directory: _Path = Path("/run/ldmd")
    control_socket: _Path = field()
    control_group: Annotated[str | None, rules.optional(rules.group_name)] = None

    @control_socket.default
    def _in_run_directory(self) -> Path:
        return self.run_directory / "control.sock"


@frozen(kw_only=True)
class ListenSettings:
    """``port`` 0 lets the kernel choose one; the daemon says which. ``links_per_peer_max``: what one
    peer may hold open; each is a descriptor, and every migration that it sends here needs one."""

    address: Annotated[str, rules.ip_address] = "0.0.0.0"
    port: Annotated[int, rules.whole(0, 65_535)] = rules.PORT_DEFAULT
    links_per_peer_max: Annotated[int, rules.whole(1, 100_000)] = 256


@frozen(kw_only=True)
class IdentitySettings:
    """``authorities`` may be empty when every peer's certificate is pinned."""

    certificate: _Path = Path("/etc/ldmd/tls/host.crt")
    key: _Path = Path("/etc/ldmd/tls/host.key")
    authorities: Annotated[tuple[Path, ...], rules.list_of(rules.path)] = (
        Path("/etc/ldmd/tls/ca.crt"),
    )


@frozen(kw_only=True)
class PeerSettings:
    """``may_send``: it may send domains to us; ``may_receive``: it may receive domains from us."""

    address: Annotated[tuple[str, int] | None, rules.optional(rules.address)] = None
    may_send: _Boolean = True
    may_receive: _Boolean = True
    certificate: Annotated[Path | None, rules.optional(rules.path)] = None


@frozen(kw_only=True)
class ResourceSettings:
    """What domains may have of this host, all together."""

    memory_bytes: Annotated[int, rules.memory] = field(
        factory=rules.host_memory_bytes, metadata={"key": "memory"}
    )
    vcpus: Annotated[int, rules.whole(1, 1_000_000)] = field(factory=rules.host_vcpus)
    domains_max: Annotated[int, rules.whole(1, 1_000_000)] = 10_000
    incoming_max: Annotated[int, rules.whole(0, 1_000)] = 16


@frozen(kw_only=True)
class SwitchSettings:
    """A virtual switch: the bridge of this host that it is."""

    bridge: Annotated[str, rules.bridge_name]
    mtu: Annotated[int, rules.whole(68, 65_535)] = 1500


@frozen(kw_only=True)
class QemuSettings:
    accelerator: Annotated[Literal["auto", "kvm", "tcg"], rules.one_of("auto", "kvm", "tcg")] = (
        "auto"
    )


@frozen(kw_only=True)
class HypervisorSettings:
    enabled: Annotated[tuple[str, ...], rules.list_of(rules.one_of(*HYPERVISORS))] = HYPERVISORS
    qemu: QemuSettings = field(factory=QemuSettings)


@frozen(kw_only=True)
class MigrationSettings:
    """Deadlines of one migration.

    ``transfer_stall_seconds``: how long transfer may make no progress. ``hold_seconds``: how long a
    prepared target keeps the receiving domain without a link. ``operation_seconds``: how long
    connecting, or one request to the hypervisor to resume or end a domain, may take before its
    outcome counts as unknown. ``probe_seconds``: how long a target that has taken a domain over asks a
    copy that may run and does not answer, before it ends it. ``settle_retry_seconds_…``: the first
    and the longest pause between two attempts at what must be done, such as reaching the target of a
    migration that is in doubt.
    """

    connect_seconds: _Seconds = 10.0
    check_seconds: _Seconds = 30.0
    prepare_seconds: _Seconds = 300.0
    transfer_stall_seconds: _Seconds = 30.0
    handoff_seconds: _Seconds = 10.0
    hold_seconds: _Seconds = 60.0
    operation_seconds: _Seconds = 60.0
    probe_seconds: _Seconds = 120.0
    settle_retry_seconds_min: _Seconds = 0.2
    settle_retry_seconds_max: _Seconds = 60.0


@frozen(kw_only=True)
class LogSettings:
    level: Annotated[str, rules.one_of("debug", "info", "warning", "error")] = "info"


@frozen(kw_only=True)
class FaultSettings:
    """For tests of the promise, never for service (docs/faults.md). ``armed``: texts like
    ``source.send-state.before=crash``. ``trace``: record every step (``ldmd/trace.py``)."""

    allowed: _Boolean = False
    trace: _Boolean = False
    armed: Annotated[tuple[str, ...], rules.list_of(rules.fault)] = ()


@frozen(kw_only=True)
class _File:
    """The file as it is written; ``Config`` is what the daemon is given."""

    host: HostSettings
    listen: ListenSettings = field(factory=ListenSettings)
    identity: IdentitySettings = field(factory=IdentitySettings)
    peers: Mapping[str, PeerSettings] = field(factory=dict)
    resources: ResourceSettings = field(factory=ResourceSettings)
    vds: Mapping[str, Mapping[str, Path]] = field(factory=dict)
    vsw: Mapping[str, SwitchSettings] = field(factory=dict)
    hypervisors: HypervisorSettings = field(factory=HypervisorSettings)
    migration: MigrationSettings = field(factory=MigrationSettings)
    log: LogSettings = field(factory=LogSettings)
    faults: FaultSettings = field(factory=FaultSettings)


@frozen(kw_only=True)
class Config:
    """All paths are absolute. ``vds``: service -> volume -> path; ``vsw``: switch -> settings."""

    path: Path
    host: HostSettings
    listen: ListenSettings
    identity: IdentitySettings
    peers: Mapping[str, Peer]
    resources: ResourceSettings
    vds: Mapping[str, Mapping[str, Path]]
    vsw: Mapping[str, SwitchSettings]
    hypervisors: HypervisorSettings
    migration: MigrationSettings
    log: LogSettings
    faults: FaultSettings


def load(path: Path) -> Config:
    """Read ``path``. Raises ConfigurationError: a line per fault, and ``facts["faults"]``."""
    path = Path(os.path.abspath(path))
    try:
        document = tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise ConfigurationError(
            f"{path}: {(error.strerror or str(error)).lower()}",
            remedy="name another file with --config",
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: byte {error.start} is not UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path}: not TOML: {error}") from error
    return from_document(document, path=path)


def from_document(document: Mapping[str, object], *, path: Path) -> Config:
    """The tables of the file at ``path`` -> the configuration. Raises ConfigurationError."""
    try:
        file = _anchor(_converter.structure(document, _File), path.parent)
    except cattrs.BaseValidationError as error:
        faults = [f"{'.'.join(key)}: {fault}" for key, fault in _faults(error, ())]
        _refuse(path, faults, error)
    if faults := list(_contradictions(file)):
        _refuse(path, faults, None)
    peers = {
        name: Peer(
            name=name,
            address=peer.address,
            may_send=peer.may_send,
            may_receive=peer.may_receive,
            certificate=peer.certificate,
        )
        for name, peer in file.peers.items()
    }
    rest = {a.name: getattr(file, a.name) for a in attrs.fields(_File) if a.name != "peers"}
    return Config(path=path, peers=peers, **rest)


def _refuse(path: Path, faults: list[str], cause: BaseException | None) -> NoReturn:
    sentence = "\n".join(f"{path}: {fault}" for fault in faults)
    raise ConfigurationError(sentence, facts={"faults": faults}) from cause


def _contradictions(file: _File) -> Iterator[str]:
    """Faults of keys that are right each by itself."""
    if file.host.name in file.peers:
        yield f"peers.{file.host.name}: is this host itself (host.name)"
    for name, peer in file.peers.items():
        if peer.certificate is None and not file.identity.authorities:
            yield f"peers.{name}.certificate: needed, because identity.authorities is empty"
        if peer.may_receive and peer.address is None:
            yield f"peers.{name}.address: needed to send domains there; or say may-receive = false"
    if file.migration.settle_retry_seconds_min > file.migration.settle_retry_seconds_max:
        yield "migration.settle-retry-seconds-min: is more than settle-retry-seconds-max"
    if file.listen.links_per_peer_max < file.resources.incoming_max:
        yield "listen.links-per-peer-max: is less than resources.incoming-max"
    for key in ("armed", "trace"):
        if getattr(file.faults, key) and not file.faults.allowed:
            yield f"faults.{key}: needs allowed = true, which is for tests alone"
    if not file.hypervisors.enabled:
        yield f"hypervisors.enabled: names none; allowed are {', '.join(HYPERVISORS)}"


def _anchor(value: T, folder: Path) -> T:
    """The same value with every path below it made absolute, from ``folder`` on."""
    changed: Any = value
    if isinstance(value, Path):
        changed = Path(os.path.normpath(folder / value))
    elif attrs.has(type(value)):
        names = [a.name for a in attrs.fields(type(value))]  # type: ignore[arg-type]
        changed = attrs.evolve(value, **{n: _anchor(getattr(value, n), folder) for n in names})  # type: ignore[misc]
    elif isinstance(value, Mapping):
        changed = {name: _anchor(item, folder) for name, item in value.items()}
    elif isinstance(value, tuple):
        changed = tuple(_anchor(item, folder) for item in value)
    return changed  # type: ignore[no-any-return]


# ---- structuring: each class from its rules --------------------------------------------

_converter = cattrs.Converter(forbid_extra_keys=True)


def _key_of(attribute: attrs.Attribute[Any]) -> str:
    return attribute.metadata.get("key") or attribute.name.replace("_", "-")


def _by_rule(rule: rules.Rule) -> Callable[[object, object], Any]:
    return lambda value, _type: rule(value)


def _is_table(value: object) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{value!r} is not a table")
    return value


def _named(name_rule: rules.Rule, structure_item: rules.Rule) -> rules.Rule:
    """A table whose keys are names that the operator chose."""

    def structure(value: object) -> dict[str, Any]:
        items, faults = {}, []
        for name, item in _is_table(value).items():
            for check, what in ((name_rule, name), (structure_item, item)):
                try:
                    items[name] = check(what)
                except Exception as error:
                    error.__notes__ = [IterableValidationNote("in a table", name, None)]
                    faults.append(error)
        if faults:
            raise cattrs.IterableValidationError("in a table", faults, dict)
        return items

    return structure


_NAMED_TABLES: Final[Mapping[str, rules.Rule]] = {
    "peers": _named(rules.host_name, lambda item: _converter.structure(item, PeerSettings)),
    "vsw": _named(rules.device_name, lambda item: _converter.structure(item, SwitchSettings)),
    "vds": _named(rules.device_name, _named(rules.device_name, rules.path)),
}


def _register(cls: type) -> None:
    overrides: dict[str, Any] = {}
    for attribute in attrs.fields(attrs.resolve_types(cls)):
        annotated = get_args(attribute.type) if hasattr(attribute.type, "__metadata__") else ()
        rule = annotated[1] if annotated else _NAMED_TABLES.get(attribute.name)
        hook = _by_rule(rule) if rule else None
        overrides[attribute.name] = override(rename=_key_of(attribute), struct_hook=hook)
    structure: Callable[[Any, Any], Any] = make_dict_structure_fn(
        cls, _converter, _cattrs_forbid_extra_keys=True, **overrides
    )
    _converter.register_structure_hook(cls, lambda value, _: structure(_is_table(value), cls))


for _class in (
    HostSettings,
    ListenSettings,
    IdentitySettings,
    PeerSettings,
    ResourceSettings,
    SwitchSettings,
    QemuSettings,
    HypervisorSettings,
    MigrationSettings,
    LogSettings,
    FaultSettings,
    _File,
):
    _register(_class)


def _faults(error: BaseException, key: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every leaf of cattrs' tree of errors: the key's path and what is wrong with it."""
    if isinstance(error, cattrs.BaseValidationError):
        keys = {a.name: _key_of(a) for a in attrs.fields(error.cl)} if attrs.has(error.cl) else {}
        for child in error.exceptions:
            step: tuple[str, ...] = ()
            for note in getattr(child, "__notes__", ()):
                if isinstance(note, AttributeValidationNote):
                    step = (keys[note.name],)
                elif isinstance(note, IterableValidationNote):
                    step = (str(note.index),)
            yield from _faults(child, key + step)
    elif isinstance(error, ForbiddenExtraKeysError):
        known = [_key_of(a) for a in attrs.fields(error.cl)]
        for extra in sorted(error.extra_fields):
            yield (*key, extra), f"unknown key; {_nearest(extra, known)}"
    elif isinstance(error, KeyError):
        yield key, "is missing"
    else:
        yield key, str(error)


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
