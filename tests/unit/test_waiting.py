"""Ctrl-C in the middle of a wait is Ctrl-C."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import typer

from amp.cli.console import INTERRUPTED, command
from amp.streaming.iterator import StreamingResultIterator
from amp.waiting import interruptible

pytestmark = pytest.mark.unit


def interrupted_after_letting_go(condition: Any) -> Any:
    """The condition, whose next wait is interrupted when it has released its lock and not yet begun to wait."""
    # An Event's lock is released by `release`, and has no `_release_save` of its own.
    release: Callable[[], object] = condition._release_save

    def let_go() -> None:
        release()
        raise KeyboardInterrupt

    condition._release_save = let_go
    return condition


def wait(condition: threading.Condition) -> None:
    with interrupted_after_letting_go(condition):
        condition.wait(10)


def test_an_interrupt_is_what_comes_out_of_a_condition() -> None:
    with pytest.raises(RuntimeError, match='un-acquired'):
        wait(threading.Condition())
    condition = threading.Condition()
    with pytest.raises(KeyboardInterrupt), interruptible():
        wait(condition)
    with condition:
        condition.notify_all()


def test_another_mistake_is_not_hidden() -> None:
    condition = threading.Condition()
    with pytest.raises(RuntimeError, match='un-acquired'), interruptible(), condition:
        condition.release()


def test_an_interrupt_is_what_comes_out_of_an_event() -> None:
    event: Any = threading.Event()
    interrupted_after_letting_go(event._cond)
    with pytest.raises(KeyboardInterrupt), interruptible():
        event.wait(10)
    event.set()
    assert event.wait()


def test_a_command_that_is_interrupted_in_a_wait_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    @command
    def waits() -> None:
        wait(threading.Condition())

    with pytest.raises(typer.Exit) as ended:
        waits()
    assert ended.value.exit_code == INTERRUPTED
    assert 'bug' not in capsys.readouterr().err


def test_an_interrupt_is_what_comes_out_of_a_stream() -> None:
    over = threading.Event()

    def silent() -> Any:
        over.wait(60)
        yield from ()

    with StreamingResultIterator(silent(), cancel=over.set) as batches:
        batches.start()
        interrupted_after_letting_go(batches._changed)
        with pytest.raises(KeyboardInterrupt):
            batches.get(10)
