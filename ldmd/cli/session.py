"""One command's conversation with the manager: connect, ask, and leave with the error's status."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from attrs import frozen

from ldmd.cli.lines import wrap
from ldmd.client import ControlClient, carry_out, connect_blocking
from ldmd.errors import LdmdError, operator_error

T = TypeVar("T")
SOCKET_DEFAULT: Final = "/run/ldmd/control.sock"
SOCKET_VARIABLE: Final = "LDM_SOCKET"
INTERRUPTED_STATUS: Final = 130


class Failure(click.ClickException):
    """An LdmdError on its way out: ``ldm: sentence`` and the remedy on stderr."""

    def __init__(self, error: LdmdError) -> None:
        super().__init__(error.sentence)
        self.error = error

    @property
    def exit_code(self) -> int:  # type: ignore[override]
        return self.error.exit_status

    def show(self, file: Any = None) -> None:
        for line in self.error.sentence.splitlines() or [self.error.code]:
            click.echo(wrap(f"ldm: {line}", stream=sys.stderr), err=True)
        if self.error.remedy:
            click.echo(wrap(f"     {self.error.remedy}", stream=sys.stderr), err=True)


@frozen
class Manager:
    """Where the manager is that the command talks to."""

    socket: Path

    def ask(self, question: Callable[[ControlClient], Coroutine[Any, Any, T]]) -> T:
        """Run ``question`` with a client; it waits for that alone, so trio is not needed. Raises Failure."""

        def conversation() -> T:
            with connect_blocking(self.socket) as client:
                return carry_out(question(client))

        return _for_people(conversation)


pass_manager = click.make_pass_decorator(Manager)


def run(conversation: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """``trio.run`` with errors for people. Raises Failure; click's Exit after Ctrl-C."""
    import trio

    return _for_people(lambda: trio.run(conversation))


def _for_people(conversation: Callable[[], T]) -> T:
    try:
        return conversation()
    except KeyboardInterrupt:
        raise click.exceptions.Exit(INTERRUPTED_STATUS) from None
    except (LdmdError, BaseExceptionGroup) as error:
        if isinstance(error, BaseExceptionGroup) and error.subgroup(KeyboardInterrupt):
            raise click.exceptions.Exit(INTERRUPTED_STATUS) from None
        known = operator_error(error)
        if known is None:
            raise
        raise Failure(known) from error
