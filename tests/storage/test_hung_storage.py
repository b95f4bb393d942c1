"""Storage that neither answers nor fails, as an NFS server that is away: it holds up whoever needs it, and nobody else."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from ldmd.errors import ChecksFailed
from tests.managers import make_fleet
from tests.storage.scene import disk, make_volume, vds

pytestmark = pytest.mark.mounts

MNT_DETACH = 2


@contextmanager
def hung_folder(folder: Path) -> Iterator[Path]:
    """A file system in user space whose user never answers: every look into it waits, until it is let go of."""
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    connection = os.open("/dev/fuse", os.O_RDWR)
    try:
        options = f"fd={connection},rootmode=40000,user_id=0,group_id=0".encode()
        if libc.mount(b"hung", os.fsencode(folder), b"fuse", 0, options):
            raise OSError(ctypes.get_errno(), f"{folder} cannot be mounted")
        try:
            yield folder
        finally:
            os.close(connection)  # whoever waits gets an error
            connection = -1
            libc.umount2(os.fsencode(folder), MNT_DETACH)
    finally:
        if connection >= 0:
            os.close(connection)


async def test_a_volume_that_hangs_holds_up_nobody_else(tmp_path: Path) -> None:
    good = make_volume(tmp_path / "good" / "root")
    with hung_folder(tmp_path / "hung") as folder:
        extra = {
            "host-a": vds(primary_vds0=f"'{good}'"),
            "host-b": vds(primary_vds0=f"'{folder / 'root'}'"),
        }
        async with (
            make_fleet(tmp_path / "fleet", extra=extra) as fleet,
            trio.open_nursery() as nursery,
        ):
            await fleet.start_domain("host-a")
            definition = {
                "name": "with-disk",
                "uuid": "11111111-2222-4333-8444-555555555555",
                "hypervisor": "qemu",
                "machine": "pc",
                "memory-bytes": 16 * 2**20,
                "vdisks": [disk()],
            }
            await fleet["host-a"].call("add-domain", {"definition": definition})
            await fleet["host-a"].call("bind-domain", {"domain": "with-disk"})
            findings: list[dict[str, object]] = []
            checked = trio.Event()

            async def check() -> None:
                with pytest.raises(ChecksFailed) as caught:
                    await fleet["host-a"].call(
                        "migrate-domain", {"domain": "with-disk", "peer": "host-b"}
                    )
                found = caught.value.facts["findings"]
                assert isinstance(found, list)
                findings.extend(found)
                checked.set()

            nursery.start_soon(check)
            # the look at the volume is given five seconds; all of this is over long before
            moved = await fleet["host-a"].call(
                "migrate-domain", {"domain": "ldg1", "peer": "host-b"}
            )
            assert moved["outcome"] == "completed"
            assert (await fleet["host-b"].domains())["ldg1"]["run_state"] == "running"
            assert not checked.is_set()
            await checked.wait()
            (missing,) = [f for f in findings if f["hard"]]
            assert missing["code"] == "volume-missing"
            assert "it does not answer" in str(missing["sentence"])
            assert await fleet["host-b"].stop() == 0, "nothing waits for the storage"
