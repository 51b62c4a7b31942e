"""Items that take long to compute, and what is said meanwhile."""

from __future__ import annotations

import threading

import pytest

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
