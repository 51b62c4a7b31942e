"""Whole numbers in text, held to a number of digits: Arrow's cast to a decimal wraps around beyond its width, silently."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute

from amp.errors import SchemaError

__all__ = ['at_most_digits']

pc: Any = pyarrow.compute  # the stubs know arrays of one type at a time


def at_most_digits(most: int) -> Callable[[Any], Any]:
    """What lets text through that is a whole number of at most `most` digits. Raises SchemaError for any other."""
    pattern = rf'^[+-]?0*[0-9]{{1,{most}}}\z'

    def checked(column: Any) -> Any:
        texts = column.cast(pa.string())
        if pc.all(pc.match_substring_regex(texts, pattern)) == pa.scalar(False):
            raise SchemaError(f'a text is no whole number of at most {most} digits', hint='leave it as text')
        return texts

    return checked
