"""What a QEMU binary of this host has, asked of the binary itself; and whether KVM really works here.

``/dev/kvm`` is there on machines where no domain starts with it, so a domain is started: the oracle firmware has to
get as far as its first line.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

import trio

from ldmd.errors import HypervisorError
from ldmd.hypervisor.driver import CpuModel
from ldmd.hypervisor.qemu_command import (
    ORACLE_FIRMWARE,
    SANDBOX,
    X86,
    Catalogue,
    CpuChoice,
    find_family,
)
from ldmd.hypervisor.qmp_codec import (
    ErrorReply,
    QmpCodec,
    QmpFault,
    Reply,
    encode_command,
    parse_version,
)

ASK_SECONDS: Final = 30.0
"""For a program that loads 100 MB of libraries from a cold disk."""
KVM_SECONDS: Final = 5.0
"""For the first line of the oracle; seen: 0.2 s."""
PIPE_BYTES_MAX: Final = 4096
KVM_DEVICE: Final = Path("/dev/kvm")

_BARE: Final = ("-nodefaults", "-no-user-config", "-display", "none", "-nic", "none")
_ORACLE_STATUS: Final = 3
"""Of a process with isa-debug-exit when a 1 was written there."""

_QUESTIONS: Final[Sequence[tuple[str, Mapping[str, Any]]]] = (
    ("query-version", {}),
    ("query-machines", {}),
    ("query-cpu-definitions", {}),
    ("qom-list-types", {}),
)

_NOT_FEATURES: Final = frozenset(
    [
        "check",
        "enforce",
        "migratable",
        "host-cache-info",
        "host-phys-bits",
        "kvm",
        "kvm-no-smi-migration",
        "hotplugged",
        "realized",
        "start-powered-off",
        "tcg-cpuid",
        "vmware-cpuid-freq",
        "fill-mtrr-mask",
        "full-cpuid-auto-level",
        "cpuid-0xb",
        "l3-cache",
        "legacy-cache",
        "hv-passthrough",
        "hv-enforce-cpuid",
    ]
)
"""Properties of a CPU that are settings of QEMU's and no feature that a domain sees by that name."""
_OTHER_NAMES: Final = frozenset(["sse3", "pclmuldq", "sse4-1", "sse4-2", "xd", "ffxsr", "i64"])
"""QEMU's second names of features; so is every one with an underscore."""
_IDENTITY: Final = ("vendor", "family", "model", "stepping", "model-id")


async def ask_program(program: str, accelerator: str) -> Catalogue | None:
    """The program's catalogue; None when it is not installed. ``accelerator``: auto, kvm or tcg.

    Raises HypervisorError when it is installed and cannot be asked.
    """
    if shutil.which(program) is None:
        return None
    answers = await _ask(program, "none", _QUESTIONS)
    machines = answers["query-machines"]
    offered = [m for m in machines if find_family(m["name"]) and m.get("default-ram-id")]
    names = frozenset(m["name"] for m in offered)
    aliases = {m["alias"]: m["name"] for m in offered if m.get("alias")}
    return Catalogue(
        program=program,
        version=parse_version(answers["query-version"]),
        machines=names | frozenset(aliases),
        aliases=aliases,
        cpus=frozenset(c["name"] for c in answers.get("query-cpu-definitions") or ()),
        types=frozenset(t["name"] for t in answers.get("qom-list-types") or ()),
        accelerator=await _choose_accelerator(program, accelerator),
    )


async def ask_cpu(catalogue: Catalogue, choice: CpuChoice) -> CpuModel:
    """The CPU that a domain gets by ``choice`` with this program and accelerator. Raises HypervisorError."""
    model: dict[str, Any] = {"name": choice.name}
    if choice.without:
        model["props"] = dict.fromkeys(choice.without, False)
    expansion = ("query-cpu-model-expansion", {"type": "full", "model": model})
    machine = f"none,accel={catalogue.accelerator}"
    answers = await _ask(catalogue.program, machine, (*_QUESTIONS, expansion))
    properties: Mapping[str, Any] = answers["query-cpu-model-expansion"]["model"]["props"]
    wanted = frozenset(
        name
        for name, value in properties.items()
        if value is True
        and not name.startswith("x-")
        and "_" not in name
        and name not in _NOT_FEATURES | _OTHER_NAMES
    )
    missing = _find_missing(answers["query-cpu-definitions"], choice.name) - {*choice.without}
    identity = " ".join(str(properties.get(name)) for name in _IDENTITY)
    return CpuModel(
        # a model of that name is the same everywhere, but that KVM gives it the vendor of the host
        model=identity if choice.of_the_host else f"{choice} of {properties.get('vendor')}",
        features=wanted - missing,
        unavailable=missing,
    )


def _find_missing(definitions: Any, name: str) -> frozenset[str]:
    return frozenset(
        feature
        for definition in definitions
        if definition["name"] == name
        for feature in definition.get("unavailable-features", ())
        if "_" not in feature
    )


async def kvm_works(program: str) -> bool:
    """Run the oracle under KVM until its first line; it ends the process itself then.

    That, and the limit of processor time, hold when the manager is killed meanwhile: no probe stays.
    """
    if not os.access(KVM_DEVICE, os.R_OK | os.W_OK):
        return False
    command = [
        *(program, *_BARE, "-machine", "pc,accel=kvm", "-m", "4M", "-sandbox", SANDBOX),
        *("-bios", str(ORACLE_FIRMWARE), "-serial", "null"),
        *("-device", "isa-debug-exit,iobase=0xf4,iosize=4"),
    ]
    limited = ["/bin/sh", "-c", f'ulimit -t {KVM_SECONDS:.0f}; exec "$@"', "sh", *command]
    with trio.move_on_after(KVM_SECONDS):
        done = await trio.run_process(
            limited, stdin=subprocess.DEVNULL, check=False, capture_stdout=True, capture_stderr=True
        )
        return done.returncode == _ORACLE_STATUS
    return False


async def _choose_accelerator(program: str, wanted: str) -> str:
    if wanted == "tcg" or program != X86:
        return "tcg"
    if await kvm_works(program):
        return "kvm"
    if wanted == "kvm":
        raise HypervisorError(
            "KVM does not run a domain on this host",
            remedy=f"load the module, let the manager's user open {KVM_DEVICE},"
            " or set the accelerator to auto",
        )
    return "tcg"


async def _ask(
    program: str, machine: str, questions: Sequence[tuple[str, Mapping[str, Any]]]
) -> Mapping[str, Any]:
    """Command -> answer; a command that this program does not know is left out.

    Everything is asked before the program starts, ``quit`` too: it ends by itself when the manager is killed meanwhile.
    """
    conversation = (("qmp_capabilities", {}), *questions, ("quit", {}))
    commands = tuple(command for command, _ in conversation)
    lines = b"".join(encode_command(c, a, i) for i, (c, a) in enumerate(conversation))
    arguments = [program, *_BARE, "-machine", machine, "-S", "-qmp", "stdio"]
    try:
        with trio.fail_after(ASK_SECONDS):
            # Its output goes into memory and not into a pipe: a program that quits does not wait for whoever reads that.
            with _filled_pipe(lines) as stdin, _file_in_memory() as answered:
                done = await trio.run_process(
                    arguments, stdin=stdin, stdout=answered, capture_stderr=True, check=False
                )
                answered.seek(0)
                output = answered.read()
        answers = _read_answers(output, commands)
        if not {"query-version", "query-machines", questions[-1][0]} <= answers.keys():
            raise QmpFault(done.stderr.decode(errors="replace").strip()[-500:] or "no answer")
        return answers
    except (OSError, QmpFault, trio.TooSlowError) as error:
        raise HypervisorError(
            f"{program} is installed but does not say what it can do: {error or 'no answer in time'}",
            remedy=f"try '{program} -machine none -display none' by hand",
        ) from error


def _file_in_memory() -> BinaryIO:
    return open(os.memfd_create("answers"), "r+b")


@contextmanager
def _filled_pipe(content: bytes) -> Iterator[int]:
    """The end to read from. ``content`` must fit: a pipe takes 4 KiB at least (pipe(7))."""
    assert len(content) <= PIPE_BYTES_MAX
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        os.write(writer, content)
        os.close(writer)
        yield reader
    finally:
        os.close(reader)


def _read_answers(output: bytes, commands: tuple[str, ...]) -> Mapping[str, Any]:
    codec = QmpCodec()
    codec.receive_bytes(output)
    answers = {}
    while (message := codec.next_message()) is not None:
        if isinstance(message, Reply):
            answers[commands[message.command_id]] = message.value
        elif isinstance(message, ErrorReply) and message.error_class != "CommandNotFound":
            raise QmpFault(message.sentence)
    return answers
