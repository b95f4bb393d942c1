"""``ldm list-domain -l`` of a domain with vdisks: which volume serves each."""

from __future__ import annotations

import attrs
import pytest

from ldmd.cli.output import print_details
from ldmd.definition import VirtualDisk, to_document
from tests.ldmd.host import define

DISKS = (
    VirtualDisk(name="d0", volume="root", service="vds0", mpgroup="g"),
    VirtualDisk(name="d1", volume="media", service="vds0", read_only=True),
)


@pytest.mark.parametrize(
    ("served", "lines"),
    [
        (
            {"d0": None, "d1": None},
            ["root@vds0, cache none, mpgroup g", "media@vds0, cache none, read-only"],
        ),
        (
            {"d0": "root@vds0", "d1": "media@vds0"},
            ["root@vds0, cache none, mpgroup g", "media@vds0, cache none, read-only"],
        ),
        (
            {"d0": "root@vds1; standby root@vds0", "d1": "media@vds0"},
            [
                "root@vds0, cache none, mpgroup g, served by root@vds1; standby root@vds0",
                "media@vds0, cache none, read-only",
            ],
        ),
    ],
)
def test_the_volume_that_serves_is_shown_where_it_is_another(
    served: dict[str, str | None], lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    definition = attrs.evolve(define("ldg1"), vdisks=DISKS)
    domain = {
        "name": "ldg1",
        "uuid": definition.uuid,
        "state": "active",
        "run_state": "running",
        "hypervisor": "qemu",
        "machine": "pc",
        "vcpus": 1,
        "memory_bytes": definition.memory_bytes,
        "console": None,
        "pid": 7,
        "operation": None,
        "vdisks": served,
    }
    print_details([domain], {"ldg1": {"definition": to_document(definition), "pending": None}})
    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert [line.partition(" d")[2][2:].strip() for line in shown if "vdisk" in line] == lines
