"""Rows that several destinations take alike: a backend with a fixture `db`, a connected loader, subclasses."""

from __future__ import annotations

import pyarrow as pa
import pytest

from amp.errors import ConfigError

_VIEWS = {
    'list view': pa.array([[1, 2], [], None, [3, None]], pa.list_view(pa.int32())),
    'large list view': pa.array([['a', None], None, ['b']], pa.large_list_view(pa.string())),
    'out of order': pa.ListViewArray.from_arrays(
        pa.array([2, 0, 0], pa.int32()), pa.array([1, 3, 0], pa.int32()), pa.array([1, 2, 3])
    ),
    'in a list': pa.array([[[1, 2], None], None, [[], [3]]], pa.list_(pa.list_view(pa.int32()))),
    'in a list of fixed size': pa.array([[[1], [2, 3]], None, [None, []]], pa.list_(pa.list_view(pa.int32()), 2)),
    'in a struct': pa.array(
        [{'a': [1, 2]}, None, {'a': None}, {'a': [3]}], pa.struct([('a', pa.list_view(pa.int64()))])
    ),
    'in a map': pa.array(
        [[('a', [1, 2]), ('b', None)], None, [], [('c', [3])]], pa.map_(pa.string(), pa.list_view(pa.int32()))
    ),
    'of uint64': pa.array([[2**64 - 1], None, [1, 2]], pa.list_view(pa.uint64())),
    'of bytes': pa.array([[b'ab', None], [b'cd']], pa.list_view(pa.binary(2))),
}


class ListViewTests:
    """Lists whose values lie anywhere."""

    @pytest.mark.parametrize('views', _VIEWS.values(), ids=_VIEWS.keys())
    def test_views_of_lists_land_exactly(self, db, views):
        for name, column in (('whole', views), ('slice', views.slice(1))):
            result = db.load_table(pa.table({'i': range(len(column)), 'l': column}), name)
            assert result.success, result.error
            assert db.scan(name).read_all().sort_by('i')['l'].to_pylist() == column.to_pylist()


class FolderTests:
    """Tables that are folders of their names."""

    @pytest.mark.parametrize('name', ['', 'half \udc80', 'a\ud83d'], ids=ascii)
    def test_what_cannot_be_a_name_is_no_folder(self, db, name):
        with pytest.raises(ConfigError, match='name'):
            db.table_exists(name)
