"""What a short verb imports: it takes longer than all that the verb does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ldmd.cli import MODULES, main
from tests.ldmd.cli.manager import SmallHost

HEAVY = {"trio", "cattrs", "rich", "cryptography", "msgpack", "unicorn", "xxhash", "ssl", "sqlite3"}
SHOW = """
import sys
from ldmd.cli import main
try:
    main()
finally:
    print(*(name for name in sys.modules if "." not in name), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        (("list",), set()),
        (("list", "-l"), {"cattrs"}),
        (("list", "-o", "status", "-p"), set()),
        (("status",), set()),
        (("list-migrations",), set()),
        (("stop-domain", "ldg1"), set()),
        (("cancel-operation", "migration", "ldg1"), {"trio", "ssl", "rich", "cattrs"}),
    ],
    ids=" ".join,
)
def test_a_verb_imports_what_it_needs(
    words: tuple[str, ...], needed: set[str], socket_path: Path, host: SmallHost
) -> None:
    host.add("ldg1")
    done = subprocess.run(
        [sys.executable, "-c", SHOW, "--socket", str(socket_path), *words],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert "ldg1" in done.stdout + done.stderr or words == ("status",)
    assert "Traceback" not in done.stderr
    imported = set(done.stderr.split())
    assert "click" in imported, "modules were shown"
    assert imported & HEAVY <= needed


def test_every_module_has_the_verbs_that_the_table_says() -> None:
    for module, verbs in MODULES.items():
        for verb in verbs:
            command = main.commands[verb]
            assert command.name == verb
        names = [c.name for c in sys.modules[f"ldmd.cli.{module}"].COMMANDS]
        assert names == list(verbs)
