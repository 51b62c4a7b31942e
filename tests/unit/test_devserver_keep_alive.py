"""Items that take long to compute, and what is said meanwhile."""

from __future__ import annotations

import threading
import time

import pytest

from amp.devserver.ahead import Ahead, LeftError, in_order
from amp.devserver.keep_alive import with_keep_alives

pytestmark = pytest.mark.unit


def test_items_come_as_they_are():
    assert list(with_keep_alives(iter(range(100)), 30, lambda: -1)) == list(range(100))


def test_a_sign_comes_while_there_is_nothing_else():
    go_on = threading.Event()

    def items():
        yield 1
        assert go_on.wait(30)
        yield 2

    found = []
    for item in with_keep_alives(items(), 0.01, lambda: 0):
        found.append(item)
        if found.count(0) == 3:
            go_on.set()
    assert found[0] == 1
    assert found[-1] == 2
    assert set(found[1:-1]) == {0}
    assert len(found) >= 5


def test_an_error_is_raised_where_the_items_are_taken():
    def items():
        yield 1
        raise ZeroDivisionError('as it was')

    found = with_keep_alives(items(), 30, lambda: 0)
    assert next(found) == 1
    with pytest.raises(ZeroDivisionError, match='as it was'):
        next(found)


def test_who_leaves_ends_the_computation():
    closed = threading.Event()

    def items():
        try:
            while True:
                yield 1
        finally:
            closed.set()

    found = with_keep_alives(items(), 30, lambda: 0)
    next(found)
    found.close()
    assert closed.wait(30)


def test_who_is_gone_waits_no_longer():
    stopped = threading.Event()

    def items():
        try:
            while True:
                time.sleep(0.01)
        finally:
            stopped.set()
        yield 1

    with pytest.raises(LeftError):
        next(with_keep_alives(items(), 30, lambda: 0, lambda: True))
    assert stopped.wait(30), 'nor is the item computed that was waited for'


def test_parts_are_computed_at_once_and_come_in_order():
    later_one_is_done = threading.Event()

    def first():
        # It cannot end before the second has begun.
        assert later_one_is_done.wait(30)
        yield from range(5)

    def second():
        yield from range(5, 10)
        later_one_is_done.set()

    assert list(in_order([first(), second(), iter([10])], 2, room=100)) == list(range(11))


def test_no_more_is_computed_than_there_is_room_for():
    computed = []

    def items():
        for number in range(100):
            computed.append(number)
            yield number

    ahead = Ahead(items(), room=30, weight=lambda _: 10)
    found = []
    for number in ahead:
        found.append(number)
        assert len(computed) - len(found) <= 3
    assert found == list(range(100))


def test_an_error_of_a_part_comes_after_what_was_before_it():
    def broken():
        yield 2
        raise ZeroDivisionError('as it was')

    found = in_order([iter([1]), broken(), iter([3])], 3, room=10)
    assert [next(found), next(found)] == [1, 2]
    with pytest.raises(ZeroDivisionError, match='as it was'):
        next(found)
