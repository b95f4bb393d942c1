"""A manager that makes one domain, says so and waits to be killed.

python -m tests.ldmd.hypervisor.lone_manager CASE RUN_DIRECTORY DEFINITION_AS_JSON
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import trio

from ldmd.definition import from_document
from ldmd.hypervisor.driver import Attachments
from tests.ldmd.hypervisor.conftest import CASES


async def main(name: str, run_directory: str, definition: str) -> None:
    case = next(case for case in CASES if case.name == name)
    print("begun", flush=True)
    domain = await case.make(case.answer_seconds).create(
        from_document(json.loads(definition)), Path(run_directory), Attachments()
    )
    await domain.resume()
    print("made", flush=True)
    await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
