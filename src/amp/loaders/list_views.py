"""Lists whose values lie anywhere (`list_view`), made into lists whose values lie one after another.

Arrow's own cast takes the offsets of a list view for those of a list: what comes out has other values, or none.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.types as pt

__all__ = ['without_views']

# The stubs of these functions know arrays of one type only.
pc: Any = pyarrow.compute


def without_views(column: Any) -> Any:
    """The column with a `large_list` for each list that is a view or holds one; itself when it holds none."""
    kind = column.type
    if not _has_views(kind):
        return column
    if pt.is_struct(kind):
        parts = [without_views(part) for part in column.flatten()]
        fields = [field.with_type(part.type) for field, part in zip(kind, parts, strict=True)]
        return pa.StructArray.from_arrays(parts, fields=fields, mask=column.is_null())
    if pt.is_map(kind):
        pairs = without_views(column.cast(pa.list_(pa.struct([kind.key_field, kind.item_field]))))
        # A map without a beginning is null.
        begins = pc.if_else(
            pa.concat_arrays([column.is_valid(), pa.array([True])]), pairs.offsets.cast(pa.int32()), None
        )
        return pa.MapArray.from_arrays(begins, *pairs.values.flatten())
    lengths = pc.if_else(column.is_valid(), pc.list_value_length(column), 0).cast(pa.int64())
    offsets = pa.concat_arrays([pa.array([0], pa.int64()), pc.cumulative_sum(lengths)])
    values = without_views(column.flatten())
    field = kind.value_field.with_type(values.type)
    return pa.LargeListArray.from_arrays(offsets, values, type=pa.large_list(field), mask=column.is_null())


def _has_views(kind: Any) -> bool:
    if pt.is_list_view(kind) or pt.is_large_list_view(kind):
        return True
    return bool(pt.is_nested(kind)) and any(_has_views(kind.field(i).type) for i in range(kind.num_fields))
