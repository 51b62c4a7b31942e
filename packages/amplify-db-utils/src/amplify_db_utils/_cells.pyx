# cython: language_level=3, cdivision=True
"""Columns out of many dicts, in one walk over them, as the buffers of Arrow arrays.

Only what needs no thought is done here: exact dicts that have the key, values of exactly one type, and None. A column
with anything else is left to the Python that knows every rule and has a sentence for every mistake.
"""

from cpython.datetime cimport (
    datetime,
    datetime_day,
    datetime_hour,
    datetime_microsecond,
    datetime_minute,
    datetime_month,
    datetime_second,
    datetime_tzinfo,
    datetime_year,
    import_datetime,
    timedelta,
)
from cpython.dict cimport PyDict_GetItemWithError, PyDict_Next
from cpython.object cimport PyObject
from libc.stdint cimport INT32_MAX, int32_t, int64_t, uintptr_t
from libc.string cimport memcpy, memset

import pyarrow as pa

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object, Py_ssize_t *) except NULL

import_datetime()


def take(list part, list columns, Py_ssize_t start):
    """Put a part of the records, the first of which is number `start`, into the columns that still fit."""
    cdef Py_ssize_t at
    order = _order(part[0], columns)
    for at in range(len(part)):
        _take(part[at], order, start + at)


cdef list _order(object record, list columns):
    """The columns as the keys of a record lie, with its very keys; those that it lacks come last."""
    cdef Column column
    others = {column._key: column for column in columns}
    order = []
    for key in list(record) if type(record) is dict else ():
        column = others.pop(key, None) if type(key) is str else None
        if column is None:
            column = Column(key, 0, True)
            column.fits = False
        column._key = key
        order.append(column)
    return order + list(others.values())


cdef int _take(object record, list order, Py_ssize_t at) except -1:
    cdef Py_ssize_t place = 0, position = 0, count = len(order)
    cdef PyObject *key
    cdef PyObject *value
    cdef Column column
    if type(record) is not dict:
        for column in order:
            column.fits = False
        return 0
    # Records have mostly the same keys in the same order: then nothing is looked up.
    while place < count and PyDict_Next(record, &position, &key, &value):
        column = <Column> order[place]
        if <PyObject *> column._key is not key:
            break
        if column.fits:
            column.fits = column.add(<object> value, at)
        place += 1
    for place in range(place, count):
        column = <Column> order[place]
        if column.fits:
            column.fits = column.look(<dict> record, at)
    return 0


cdef class Column:
    """Place for `count` values of one kind; a record without the key is a null where it `may_lack` it.

    `buffers` are Arrow's, validity first. They are of use as long as all values `fit`.
    """

    cdef readonly bint fits
    cdef readonly Py_ssize_t nulls
    cdef readonly list buffers
    cdef object _key
    cdef bint _may_lack
    cdef char *_valid

    def __init__(self, object key, Py_ssize_t count, bint may_lack):
        self.fits, self.nulls, self.buffers = True, 0, []
        self._key, self._may_lack = key, may_lack
        self._valid = self._buffer((count + 7) // 8, 0xff)

    cdef char *_buffer(self, Py_ssize_t size, int fill) except NULL:
        # Of Arrow's pool: memory fresh from the system costs more than what is put into it.
        buffer = pa.allocate_buffer(size, resizable=True)
        self.buffers.append(buffer)
        memset(_address(buffer), fill, size)
        return _address(buffer)

    cdef bint look(self, dict record, Py_ssize_t at) except -1:
        cdef PyObject *found = PyDict_GetItemWithError(record, self._key)
        if found is NULL:
            return self._may_lack and self.add(None, at)
        return self.add(<object> found, at)

    cdef inline bint add(self, object value, Py_ssize_t at) except -1:
        if value is None:
            self.nulls += 1
            self._valid[at >> 3] &= ~(1 << (at & 7))
        return self.put(value, at)

    cdef bint put(self, object value, Py_ssize_t at) except -1:
        """Whether the value fits. None always does."""
        raise NotImplementedError


cdef class Texts(Column):
    """UTF-8, with offsets of 32 bits."""

    cdef char *_text
    cdef int32_t *_ends
    cdef Py_ssize_t _room, _end

    def __init__(self, str key, Py_ssize_t count, bint may_lack):
        super().__init__(key, count, may_lack)
        self._ends = <int32_t *> self._buffer(4 * (count + 1), 0) + 1
        self._room, self._end = 16 * count, 0
        self._text = self._buffer(self._room, 0)

    cdef bint put(self, object value, Py_ssize_t at) except -1:
        cdef Py_ssize_t size = 0
        cdef const char *text
        if type(value) is str:
            try:
                text = PyUnicode_AsUTF8AndSize(value, &size)
            except UnicodeEncodeError:
                return False
            if size > INT32_MAX - self._end:
                return False
            if size > self._room - self._end:
                self._grow(size)
            memcpy(self._text + self._end, text, size)
            self._end += size
        elif value is not None:
            return False
        self._ends[at] = <int32_t> self._end
        return True

    cdef int _grow(self, Py_ssize_t size) except -1:
        self._room = 2 * (self._end + size)
        self.buffers[2].resize(self._room)
        self._text = _address(self.buffers[2])
        return 0


cdef class Booleans(Column):
    cdef char *_bits

    def __init__(self, str key, Py_ssize_t count, bint may_lack):
        super().__init__(key, count, may_lack)
        self._bits = self._buffer((count + 7) // 8, 0)

    cdef bint put(self, object value, Py_ssize_t at) except -1:
        if value is True:
            self._bits[at >> 3] |= 1 << (at & 7)
            return True
        return value is False or value is None


cdef class Words(Column):
    """Values of 64 bits."""

    cdef int64_t *_words

    def __init__(self, str key, Py_ssize_t count, bint may_lack):
        super().__init__(key, count, may_lack)
        self._words = <int64_t *> self._buffer(8 * count, 0)


cdef class Integers(Words):
    cdef bint put(self, object value, Py_ssize_t at) except -1:
        if type(value) is int:
            try:
                self._words[at] = value
            except OverflowError:
                return False
            return True
        return value is None


cdef class Floats(Words):
    cdef bint put(self, object value, Py_ssize_t at) except -1:
        if type(value) is float:
            (<double *> self._words)[at] = value
            return True
        return value is None


cdef class Moments(Words):
    """Datetimes that are naive or in a zone that is always UTC, as microseconds since 1970."""

    cdef object _utc  # the zone that was looked at last: most columns have one

    cdef bint put(self, object value, Py_ssize_t at) except -1:
        cdef int64_t seconds
        if type(value) is not datetime:
            return value is None
        zone = datetime_tzinfo(value)
        if zone is not None and zone is not self._utc:
            if zone.utcoffset(None) != timedelta(0):
                return False
            self._utc = zone
        seconds = 86400 * _days(datetime_year(value), datetime_month(value), datetime_day(value))
        seconds += 3600 * datetime_hour(value) + 60 * datetime_minute(value) + datetime_second(value)
        self._words[at] = 1000000 * seconds + datetime_microsecond(value)
        return True


cdef char *_address(object buffer) except NULL:
    return <char *> <uintptr_t> buffer.address


cdef inline int64_t _days(int64_t year, int64_t month, int64_t day) noexcept:
    """Days since 1970 of a date from year 1 on. The year begins in March here, so that a leap day is its last."""
    if month <= 2:
        year -= 1
        month += 12
    return 365 * year + year // 4 - year // 100 + year // 400 + (153 * (month - 3) + 2) // 5 + day - 719469
