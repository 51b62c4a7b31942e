"""Ctrl-C in the middle of a wait is Ctrl-C."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from amp.streaming.iterator import StreamingResultIterator
from amp.waiting import Condition, wait_for

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
    condition = Condition()
    with pytest.raises(KeyboardInterrupt):
        wait(condition)
    with condition:
        condition.notify_all()


def test_another_mistake_is_not_hidden() -> None:
    condition = Condition()
    with pytest.raises(RuntimeError, match='un-acquired'), condition:
        condition.release()


def test_an_interrupt_is_what_comes_out_of_an_event() -> None:
    event: Any = threading.Event()
    interrupted_after_letting_go(event._cond)
    with pytest.raises(KeyboardInterrupt):
        wait_for(event, 10)
    event.set()
    assert wait_for(event)


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
