"""A host's certificate that ends in the middle of migrations, and its renewal, which needs no restart."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
import trio

from certs.issue import issue_host
from certs.store import write_identity
from ldmd.errors import LdmdError
from tests.faults.moments import EVERY_PHASE, MOMENTS
from tests.faults.scene import DEADLINE_SECONDS, HOSTS, Ending, Scene, open_scene
from tests.managers import wait_for

LEFT_SECONDS = 5.0
"""For the links of all migrations to be made in."""
GRANTED = next(moment for moment in MOMENTS if moment.name == "granted")
DAY = datetime.timedelta(days=1)


def issue(scene: Scene, host: str, left_seconds: float | None = None) -> datetime.datetime:
    """A certificate for that host that ends in so many seconds (None: in two years); returns when it ends."""
    begin = None
    if left_seconds is not None:
        begin = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=left_seconds) - DAY
    days = 730 if left_seconds is None else 1
    identity = issue_host(scene.fleet.authority, host, days, not_before=begin)
    write_identity(scene[host].folder / "tls", identity, force=True)
    return identity.certificate.not_valid_after_utc


async def wait_past(moment: datetime.datetime) -> None:
    left = moment - datetime.datetime.now(datetime.UTC)
    await trio.sleep(max(0.0, left.total_seconds()) + 1.1)  # they end with a whole second


@pytest.mark.parametrize("victim", HOSTS)
async def test_it_ends_on_the_way(victim: str, tmp_path: Path) -> None:
    """Links there are go on; new ones are refused with the reason; a new certificate is enough."""
    async with open_scene(tmp_path) as scene:
        await scene.start_domains(len(EVERY_PHASE))
        await scene.warm_up()
        ends = issue(scene, victim, LEFT_SECONDS + 2)
        await scene.catch(EVERY_PHASE)
        await wait_past(ends)
        endings = await scene.wait_settled()
        name = min(endings, key=lambda n: endings[n].owner)
        owner = endings[name].owner
        peer = next(host for host in HOSTS if host != owner)
        with pytest.raises(LdmdError, match="expired"):
            await scene[owner].call("migrate-domain", {"domain": name, "peer": peer})
        assert (await scene.wait_settled())[name] == Ending(owner=owner, running=True)
        issue(scene, victim)
        await scene.assert_promise()


@pytest.mark.parametrize("victim", HOSTS)
async def test_it_ends_in_doubt(victim: str, tmp_path: Path) -> None:
    """It is said that the certificate has expired, and with a new one the answer is had without a person."""
    async with open_scene(tmp_path) as scene:
        await scene.start_domains(1)
        await scene.warm_up()
        ends = issue(scene, victim, LEFT_SECONDS)
        await scene.catch([GRANTED], hold_seconds=DEADLINE_SECONDS - 1)
        await wait_past(ends)
        scene.proxies["host-b"].reset()

        async def said() -> bool:
            (found,) = (await scene["host-a"].call("list-migrations"))["migrations"]
            return bool(found["decision"] == "in doubt" and "expired" in found["sentence"])

        await wait_for(said)
        (domain,) = (await scene["host-a"].domains()).values()
        assert domain["run_state"] == "suspended"
        issue(scene, victim)
        await scene.assert_promise()
