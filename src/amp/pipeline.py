"""Several streams side by side in one process, as a file describes them.

    [source]
    url = "grpc://localhost:1602"

    [[stream]]
    sql = "SELECT * FROM eth_rpc.logs"
    to = "postgresql://me@host/db"      # or a configured name
    table = "logs"
    workers = 4                         # history first, with so many workers; left out: stream from the start
    label = ["tokens=tokens.csv"]       # with join, left and label_reload: as on the command line

Each runs in a thread of its own. One that fails for good is told and the others go on.
"""

from __future__ import annotations

import queue
import threading
import tomllib
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amp.errors import AmpError, ConfigError
from amp.label_words import TypedLabel, add_labels, labels_of
from amp.loaders.options import as_mode
from amp.loaders.types import LoadResult

if TYPE_CHECKING:
    from amp.client import Client

__all__ = ['Pipeline', 'StreamSpec', 'read_pipeline', 'run_pipeline']

_LABEL_KEYS = {'label', 'join', 'left', 'label_reload'}
_KINDS: dict[str, tuple[type, str]] = {
    **dict.fromkeys(('source', 'sql', 'to', 'table', 'name', 'mode'), (str, 'a text')),
    'workers': (int, 'a whole number'),
    'options': (dict, 'a table of options'),
}
_KEYS = _KINDS.keys() | {'key_columns'} | _LABEL_KEYS


@dataclass(frozen=True)
class StreamSpec:
    """One stream. `source` is the server's URL; `workers` None streams from the start."""

    source: str
    sql: str
    to: str
    table: str
    name: str
    mode: str = 'append'
    key_columns: tuple[str, ...] = ()
    workers: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    labels: tuple[TypedLabel, ...] = ()


@dataclass(frozen=True)
class Pipeline:
    """What a file describes."""

    streams: tuple[StreamSpec, ...]


def read_pipeline(path: Path) -> Pipeline:
    """Read and check a file. Raises ConfigError with what is wrong in it."""
    try:
        found = tomllib.loads(path.read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f'{path} cannot be read: {error}') from error
    unknown = sorted(set(found) - {'source', 'stream'})
    if unknown:
        raise ConfigError(f'{path}: there is no section {unknown[0]!r}', hint='sections: source, stream')
    default = _source(path, found.get('source', {}))
    entries = found.get('stream', [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f'{path}: a stream is a section [[stream]], in two pairs of brackets')
    specs = tuple(_spec(path, number, dict(entry), default) for number, entry in enumerate(entries, 1))
    if not specs:
        raise ConfigError(f'{path} describes no stream', hint='[[stream]] with sql, to and table')
    keys = [(spec.to, spec.table, spec.name) for spec in specs]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise ConfigError(
            f'{path}: two streams are called {twice[2]!r} at one table', hint='give each a name of its own'
        )
    return Pipeline(specs)


def _source(path: Path, section: object) -> str | None:
    """The server of the streams that name none."""
    if not isinstance(section, dict) or section.keys() - {'url'} or not isinstance(section.get('url', ''), str):
        raise ConfigError(f'{path}: the source is a section [source] with a url alone, a text')
    return section.get('url')


def _spec(path: Path, number: int, entry: dict[str, Any], default: str | None) -> StreamSpec:
    where = f'{path}, stream {number}'
    unknown = sorted(set(entry) - _KEYS)
    if unknown:
        raise ConfigError(f'{where}: unknown key {unknown[0]!r}', hint=f'keys: {", ".join(sorted(_KEYS))}')
    entry.setdefault('source', default)
    missing = next((key for key in ('source', 'sql', 'to', 'table') if not entry.get(key)), None)
    if missing is not None:
        raise ConfigError(
            f'{where} has no {missing!r}', hint='[source] url = "grpc://..."' if missing == 'source' else None
        )
    entry.setdefault('name', entry['table'])
    for key, (wanted, kind) in _KINDS.items():
        if key in entry and not (isinstance(entry[key], wanted) and not isinstance(entry[key], bool)):
            raise ConfigError(f'{where}: {key!r} is {kind}, not {entry[key]!r}')
    if entry.get('workers', 1) < 1:
        raise ConfigError(f'{where}: {entry["workers"]} workers do nothing', hint='workers = 1, or more')
    as_mode(entry.get('mode', 'append'))
    entry['key_columns'] = tuple(_texts(where, 'key_columns', entry.get('key_columns', ())))
    words = {key: entry.pop(key) for key in _LABEL_KEYS & entry.keys()}
    return StreamSpec(**entry, labels=_labels(where, **words))


def _labels(
    where: str, label: object = (), join: object = (), left: object = False, label_reload: object = False
) -> tuple[TypedLabel, ...]:
    """The labels of a stream, in the words of the command line; one text may stand for a list of one."""
    for key, value in {'left': left, 'label_reload': label_reload}.items():
        if not isinstance(value, bool):
            raise ConfigError(f'{where}: {key!r} is true or false, not {value!r}')
    labels, joins = (_texts(where, key, value) for key, value in {'label': label, 'join': join}.items())
    try:
        return tuple(
            labels_of(
                labels, joins, left=bool(left), reload=bool(label_reload), word=lambda w: repr(w.replace('-', '_'))
            )
        )
    except ConfigError as error:
        raise ConfigError(f'{where}: {error.message}') from error


def _texts(where: str, key: str, value: object) -> Sequence[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise ConfigError(f'{where}: {key!r} is a text or a list of texts, not {value!r}')
    return texts


def run_pipeline(
    pipeline: Pipeline, make_client: Callable[[str], Client]
) -> Generator[tuple[StreamSpec, LoadResult | AmpError], None, None]:
    """Results of all streams as they come; an AmpError is the last word of its stream. Closing it stops them all."""
    results: queue.SimpleQueue[tuple[StreamSpec, LoadResult | AmpError | BaseException | None]] = queue.SimpleQueue()
    stop = threading.Event()
    threads = [
        threading.Thread(target=_run, args=(spec, make_client, stop, results), name=f'amp-{spec.name}', daemon=True)
        for spec in pipeline.streams
    ]
    for thread in threads:
        thread.start()
    try:
        running = len(threads)
        while running:
            spec, result = results.get()
            if result is None:
                running -= 1
            elif isinstance(result, LoadResult | AmpError):
                yield spec, result
            else:
                raise result
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _run(
    spec: StreamSpec, make_client: Callable[[str], Client], stop: threading.Event, results: queue.SimpleQueue[Any]
) -> None:
    try:
        with make_client(spec.source) as client, closing(_follow(client, spec, stop)) as followed:
            for result in followed:
                results.put((spec, result))
                if stop.is_set():
                    return
    except BaseException as error:  # noqa: BLE001 - told to the consumer, in whose thread it is raised
        results.put((spec, error))
    finally:
        results.put((spec, None))


def _follow(client: Client, spec: StreamSpec, stop: threading.Event) -> Generator[LoadResult, None, None]:
    from amp.loaders.settings import StreamSettings
    from amp.streaming.parallel import ParallelConfig

    parallel = None if spec.workers is None else ParallelConfig(spec.workers, spec.table)
    keys: dict[str, Any] = {'key_columns': spec.key_columns} if spec.key_columns else {}
    yield from client.sql(spec.sql).load(
        spec.to,
        spec.table,
        stream=True,
        name=spec.name,
        mode=spec.mode,
        parallel_config=parallel,
        settings=StreamSettings(stop=stop),
        **keys,
        **add_labels(client, spec.labels),
        **dict(spec.options),
    )
