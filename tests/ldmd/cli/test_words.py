"""Short forms and prefixes."""

from __future__ import annotations

import pytest

from ldmd.cli import main
from ldmd.cli.words import SHORT_FORMS, find_verbs


def test_the_table_names_the_verbs_there_are() -> None:
    assert set(SHORT_FORMS) == set(main.commands)


def test_no_word_is_two_verbs() -> None:
    words = [*SHORT_FORMS, *(word for forms in SHORT_FORMS.values() for word in forms)]
    assert len(words) == len(set(words))


@pytest.mark.parametrize(
    ("word", "verbs"),
    [
        ("list-domain", ["list-domain"]),
        ("list-dom", ["list-domain"]),
        ("list", ["list-domain"]),
        ("ls", ["list-domain"]),
        ("add-dom", ["add-domain"]),
        ("rm-dom", ["remove-domain"]),
        ("bind", ["bind-domain"]),
        ("unbind", ["unbind-domain"]),
        ("start-dom", ["start-domain"]),
        ("stop", ["stop-domain"]),
        ("migrate", ["migrate-domain"]),
        ("mig", ["migrate-domain"]),
        ("stat", ["status"]),
        ("create", ["add-domain"]),
        ("modify", ["set-domain"]),
        ("destroy", ["remove-domain"]),
        ("set-mem", ["set-memory"]),
        ("rm-vdisk", ["remove-vdisk"]),
        ("rm-var", ["remove-variable"]),
        ("add-vn", ["add-vnet"]),
        ("set-vd", ["set-vdisk"]),
        ("ren", ["rename-domain"]),
        ("remove-reconf", ["cancel-reconf"]),
        ("cancel-r", ["cancel-reconf"]),
        ("cancel-op", ["cancel-operation"]),
        ("cancel", ["cancel-operation", "cancel-reconf"]),
        ("add-v", ["add-variable", "add-vcpu", "add-vdisk", "add-vnet"]),
        ("li", ["list-constraints", "list-domain", "list-migrations"]),
        ("sta", ["start-domain", "status"]),
        ("x", []),
    ],
)
def test_what_a_word_means(word: str, verbs: list[str]) -> None:
    assert sorted(find_verbs(word, main.commands)) == verbs
