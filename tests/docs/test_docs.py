"""What the documents say is so."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from certs.cli import main as certs_command
from ldmd.cli import main as ldm_command
from tests import checks_page, states_page

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_states_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / "states.md").read_text() == states_page.render()


def test_the_checks_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / "checks.md").read_text() == checks_page.render()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_exist_with_their_options(page: Path) -> None:
    text = page.read_text()
    for program, command in (("ldm", ldm_command), ("ldm-certs", certs_command)):
        assert isinstance(command, click.Group)
        context = click.Context(command)
        for verb, rest in re.findall(rf"(?<![\w./-]){program} ([a-z][a-z-]+)([^\n`&;]*)", text):
            found = command.get_command(context, verb)
            assert found is not None, f"{program} {verb}"
            if isinstance(found, click.Group):
                within, _, rest = rest.strip().partition(" ")
                found = found.get_command(context, within.partition("|")[0])
                assert found is not None, f"{program} {verb} {within}"
            known = {option for p in found.params for option in p.opts}
            for option in re.findall(r"(?<!\S)(--?[a-z][a-z-]*)", rest):
                assert option in known, f"{program} {verb} {option}"


def test_paths_of_the_readme_exist() -> None:
    for path in re.findall(
        r"`((?:protocol|ldmd|certs|docs|systemd|tests)/[\w./-]*)`", PAGES[0].read_text()
    ):
        assert (ROOT / path).exists(), path
