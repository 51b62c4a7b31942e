"""Tables that several tests share."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import BaseModel

PARTITION_BY = ['instrument', 'year', 'month']


class Image(BaseModel):
    image_id: str
    timestamp: datetime
    instrument: str
    year: int
    month: int
    area: float | None = None


def image(number: int, **changes: Any) -> dict[str, Any]:
    record = {
        'image_id': f'image {number:05}',
        'timestamp': datetime(2024, 1, 1, tzinfo=UTC) + timedelta(minutes=number),
        'instrument': 'IFCB107',
        'year': 2024,
        'month': 1 + number % 12,
        'area': number / 2,
    }
    return record | changes
