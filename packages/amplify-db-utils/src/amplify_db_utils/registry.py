"""`_registry/tables.json`: what the tables of a store are, for whoever reads it without the logs.

The logs are the truth. The file follows each change of a table, is replaced in one step, and keeps what others put there.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
from filelock import FileLock

from amplify_db_utils.errors import StoreError
from amplify_db_utils.faults import reaching
from amplify_db_utils.storage import Storage, replace_file

PATH = '_registry/tables.json'
Entries: TypeAlias = dict[str, dict[str, Any]]

_LEGACY: dict[str, pa.DataType] = {
    **{str(kind): kind for kind in (pa.int8(), pa.int16(), pa.int32(), pa.int64())},
    **{str(kind): kind for kind in (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())},
    **{str(kind): kind for kind in (pa.float16(), pa.float32(), pa.float64(), pa.bool_(), pa.date32(), pa.date64())},
    **{str(kind): kind for kind in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())},
    'utf8': pa.string(),
    'large_utf8': pa.large_string(),
    'float16': pa.float16(),
    'float32': pa.float32(),
    'float64': pa.float64(),
    'boolean': pa.bool_(),
    'str': pa.string(),
    'int': pa.int64(),
}


def entry(schema: pa.Schema, partition_by: list[str]) -> dict[str, Any]:
    """What the registry says of one table."""
    return {
        'schema_ipc': base64.b64encode(schema.serialize().to_pybytes()).decode(),
        'schema_fields': [{'name': part.name, 'type': str(part.type), 'nullable': part.nullable} for part in schema],
        'columns': schema.names,
        'partition_by': partition_by or None,
    }


def parse_entry(table: str, found: Mapping[str, Any]) -> tuple[pa.Schema, list[str]]:
    """The schema and partition keys in an entry of this or an older form. Raises StoreError for neither."""
    try:
        if found.get('schema_ipc'):
            schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(found['schema_ipc'])))
        else:
            fields = found['schema_fields']
            schema = pa.schema([pa.field(one['name'], _legacy_type(one['type']), one['nullable']) for one in fields])
        return schema, list(found.get('partition_by') or [])
    except (KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise StoreError(f'{PATH} does not say what table {table!r} is: {error!r}') from error


def _legacy_type(text: str) -> pa.DataType:
    if text in _LEGACY:
        return _LEGACY[text]
    if match := re.fullmatch(r'timestamp\[(s|ms|us|ns)(?:, tz=(.+))?\]', text):
        unit: Any = match[1]
        return pa.timestamp(unit, match[2])
    if match := re.fullmatch(r'(large_)?list<\w+: (.+)>', text):
        return (pa.large_list if match[1] else pa.list_)(_legacy_type(match[2].removesuffix(' not null')))
    raise ValueError(f'type {text!r} is not known')


def load(storage: Storage) -> Entries:
    """All entries; none if there is no file. Raises StoreError if it is no registry."""
    return _decode(storage.read(PATH))


def _decode(data: bytes | None) -> Entries:
    if data is None:
        return {}
    try:
        entries = json.loads(data)
    except ValueError as error:
        raise StoreError(f'{PATH} is no JSON: {error}') from error
    if not isinstance(entries, dict) or not all(isinstance(one, dict) for one in entries.values()):
        raise StoreError(f'{PATH} holds no tables')
    return entries


def _encode(entries: Entries) -> bytes:
    return json.dumps(entries, indent=2, ensure_ascii=False).encode()


def update(storage: Storage, ours: Callable[[], Entries]) -> None:
    """Bring the file up to date with `ours`, the entries as the logs have them now; others' entries stay."""
    if storage.local:
        _update_local(storage, ours)
    else:
        _update_s3(storage, ours)


def _update_local(storage: Storage, ours: Callable[[], Entries]) -> None:
    path = Path(storage.path(PATH))
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix('.lock')):
        before = load(storage)
        after = before | ours()
        if after != before:
            replace_file(path, lambda new: _write(new, _encode(after)))


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _update_s3(storage: Storage, ours: Callable[[], Entries]) -> None:
    import obstore
    from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

    objects = storage.objects()
    while True:
        try:
            with reaching(BaseError):
                found = obstore.get(objects, PATH)
                before, tag = _decode(bytes(found.bytes())), found.meta['e_tag']
        except FileNotFoundError:
            before, tag = {}, None
        after = before | ours()
        # Some servers put in spite of a tag that has changed. Looking again after the put finds what that took away:
        # the last to put always looks last, and the logs were there before.
        if after == before:
            return
        try:
            with reaching(BaseError):
                obstore.put(objects, PATH, _encode(after), mode='create' if tag is None else {'e_tag': tag})
        except (AlreadyExistsError, PreconditionError):
            continue
