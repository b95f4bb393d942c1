"""``ldm fault``: make things go wrong on purpose, on a manager whose configuration allows it."""

from __future__ import annotations

from typing import Final

import click

from ldmd.cli import output
from ldmd.cli.session import Manager, pass_manager
from ldmd.client import ControlClient


@click.group(short_help="Arm faults, on a manager for tests.")
def fault() -> None:
    """Arm faults in the manager's migration path, for tests of the promise.

    Refused unless its configuration says allowed = true in [faults]. docs/faults.md says what each kind does.
    """


@fault.command("list", short_help="Print every fault point.")
@click.option("-l", "--long", is_flag=True, help="Also what can be armed there, and what is.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@pass_manager
def list_faults(manager: Manager, long: bool, as_json: bool) -> None:
    """Print every fault point, one name a line."""
    answer = manager.ask(lambda client: client.call("list-faults"))
    if as_json:
        output.print_json(answer)
        return
    for point in answer["points"]:
        if long:
            armed = f"  armed: {', '.join(point['armed'])}" if point["armed"] else ""
            click.echo(f"{point['point']:<40} {' '.join(point['faults'])}{armed}")
        else:
            click.echo(point["point"])


@fault.command("arm", short_help="Make a fault happen, once.")
@click.argument("faults", metavar="POINT=KIND[:NUMBER]...", nargs=-1, required=True)
@pass_manager
def arm_fault(manager: Manager, faults: tuple[str, ...]) -> None:
    """Make each fault happen when its point is reached next, once.

    KIND is crash, cut, hang, delay:SECONDS, fail, unknown, cut-after:BYTES or flip:BIT, as the
    point allows (`ldm fault list -l`).

    \b
    ldm fault arm target.record-committed.after=crash
    """

    async def arm(client: ControlClient) -> None:
        for text in faults:
            answer = await client.call("arm-fault", {"fault": text})
            click.echo(f"armed {answer['armed']}")

    manager.ask(arm)


@fault.command("disarm", short_help="Forget every fault that is armed.")
@pass_manager
def disarm_faults(manager: Manager) -> None:
    """Forget every fault that is armed and has not happened."""
    manager.ask(lambda client: client.call("disarm-faults"))


COMMANDS: Final = (fault,)
