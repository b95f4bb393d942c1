"""The words of the command line: the Logical Domains Manager's verbs and their short forms.

Source: ldm(8) of Oracle VM Server for SPARC 3.6: every verb may be said with ``dom`` for ``domain``,
some by their first word alone. Each may also be shortened to a prefix that no other verb has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

SHORT_FORMS: Final[Mapping[str, tuple[str, ...]]] = {
    "add-domain": ("add-dom", "create"),
    "remove-domain": ("rm-domain", "rm-dom", "remove-dom", "destroy"),
    "bind-domain": ("bind-dom", "bind"),
    "unbind-domain": ("unbind-dom", "unbind"),
    "start-domain": ("start-dom", "start"),
    "stop-domain": ("stop-dom", "stop"),
    "suspend-domain": ("suspend-dom", "suspend"),
    "resume-domain": ("resume-dom", "resume"),
    "set-domain": ("set-dom", "modify"),
    "rename-domain": ("rename-dom",),
    "list-constraints": ("ls-constraints",),
    "add-vcpu": (),
    "set-vcpu": (),
    "remove-vcpu": ("rm-vcpu",),
    "add-memory": ("add-mem",),
    "set-memory": ("set-mem",),
    "remove-memory": ("remove-mem", "rm-memory", "rm-mem"),
    "add-vdisk": (),
    "set-vdisk": (),
    "remove-vdisk": ("rm-vdisk",),
    "add-vnet": (),
    "set-vnet": (),
    "remove-vnet": ("rm-vnet",),
    "add-variable": ("add-var",),
    "set-variable": ("set-var",),
    "remove-variable": ("remove-var", "rm-variable", "rm-var"),
    "cancel-reconf": ("remove-reconf", "rm-reconf"),
    "console": (),
    "list-domain": ("list-dom", "list", "ls-domain", "ls-dom", "ls"),
    "migrate-domain": ("migrate-dom", "migrate"),
    "cancel-operation": ("cancel-op",),
    "list-migrations": ("ls-migrations",),
    "show-migration": (),
    "recover-migration": (),
    "fault": (),
    "status": (),
    "demo": (),
}


def find_verbs(word: str, verbs: Iterable[str]) -> list[str]:
    """The verbs that ``word`` can mean: one when it is a verb, a short form or an own prefix."""
    names = list(verbs)
    exact = [v for v in names if word == v or word in SHORT_FORMS.get(v, ())]
    return exact or [v for v in names if v.startswith(word)]
