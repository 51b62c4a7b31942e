"""Ctrl-C in the middle of a wait is Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
import typer

from amp.cli.console import INTERRUPTED, command
from amp.loaders import registry
from amp.loaders.duckdb import statements
from amp.loaders.registry import get_loader_class
from amp.streaming.iterator import StreamingResultIterator
from amp.waiting import interruptible, uninterrupted

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _heard() -> Iterator[None]:
    """What a process does with Ctrl-C, other code may have changed."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


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


def told() -> None:
    raise ValueError('calling `serialize` failed: KeyboardInterrupt: ')


def caused() -> None:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt as error:
        raise ValueError('it failed') from error


def within() -> None:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        raise ValueError('it failed')  # noqa: B904 - as libraries do


def while_arrow_reads() -> None:
    def rows() -> Any:
        raise KeyboardInterrupt
        yield

    pa.RecordBatchReader.from_batches(pa.schema([('x', pa.int64())]), rows()).read_all()


@pytest.mark.parametrize('lose', [told, caused, within, while_arrow_reads])
def test_an_interrupt_that_a_library_made_an_error_of_is_one_again(lose: Callable[[], None]) -> None:
    with pytest.raises((ValueError, KeyboardInterrupt)):
        lose()
    with pytest.raises(KeyboardInterrupt), interruptible():
        lose()


def test_an_error_is_no_interrupt_for_what_was_handled_before_or_a_value_says() -> None:
    with pytest.raises(ValueError, match='not this'), interruptible():
        raise ValueError("the value 'KeyboardInterrupt' is not this")
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        with pytest.raises(ValueError, match='its own'), interruptible():
            raise ValueError('an error of its own')  # noqa: B904 - what a clean-up does


def test_errors_that_are_causes_of_each_other_end() -> None:
    first, second = ValueError('first'), ValueError('second')
    first.__cause__, second.__cause__ = second, first
    with pytest.raises(ValueError, match='first'), interruptible():
        raise first


def test_an_interrupt_of_a_statement_of_duckdb_is_one() -> None:
    for lost in (
        RuntimeError('Query interrupted'),
        duckdb.InvalidInputException("reading the object registered as 'x' failed: KeyboardInterrupt: "),
    ):
        with pytest.raises(KeyboardInterrupt), statements.interruptible():
            raise lost


def test_an_interrupt_waits_for_the_end() -> None:
    done = []

    def act() -> None:
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            done.append('all')

    with pytest.raises(KeyboardInterrupt):
        act()
    assert done == ['all']
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_that_is_ignored_stays_ignored_and_other_threads_are_let_be() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    done = []

    def run() -> None:
        with uninterrupted():
            done.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert done == [before]


def test_a_driver_is_imported_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of C++ that is interrupted in its middle ends the process."""
    (tmp_path / 'interrupted_driver.py').write_text(
        'import os, signal\nos.kill(os.getpid(), signal.SIGINT)\ndone = True\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, '_own_modules', lambda: {'left_in_the_middle': 'interrupted_driver'})
    with pytest.raises(KeyboardInterrupt):
        get_loader_class('left_in_the_middle')
    assert sys.modules.pop('interrupted_driver').done


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
