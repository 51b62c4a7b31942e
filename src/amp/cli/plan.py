"""`amp plan`: what a load would do. It asks both ends and touches neither."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from amp.cli.console import command, emit, interruptible
from amp.cli.inputs import AsJson, Auth, Sql, Token, Url, server_and_sql
from amp.cli.labels import Joins, KeepAll, Labels, add_labels, typed_labels
from amp.cli.load import TableName, To
from amp.cli.server import open_client

if TYPE_CHECKING:
    import pyarrow as pa

    from amp.loaders.base import DataLoader

__all__ = ['plan']

_SAMPLE_BLOCKS = 100


@command
def plan(
    url: Url = None,
    sql: Sql = None,
    *,
    to: To,
    table: TableName,
    block_column: Annotated[str, typer.Option(help='The column of the query that holds the block.')] = 'block_num',
    streaming: Annotated[
        bool, typer.Option('--stream', help='Plan a stream, whose rows carry two columns more.')
    ] = False,
    label: Labels = None,
    join: Joins = None,
    left: KeepAll = False,
    token: Token = None,
    auth: Auth = False,
    as_json: AsJson = False,
) -> None:
    """Show what a load would do: columns, their types there, the SQL, blocks, gaps, and about how many rows."""
    labels = typed_labels(label, join, left=left)
    url, text = server_and_sql(url, sql)
    from amp.loaders.lanes import family, gaps_of, history_of
    from amp.loaders.stamps import stamped_schema
    from amp.loaders.status import open_destination, server_coverage
    from amp.streaming.ledger import StreamKey

    with interruptible(), contextlib.ExitStack() as stack:
        client = stack.enter_context(open_client(url, token, auth=auth))
        query = client.sql(text)
        asked = client.make_loader(to)
        schema = asked.shape(**add_labels(client, labels)).schema(query.schema())
        columns = _columns(asked.name, schema)
        schema = stamped_schema(schema) if streaming else schema
        covered = server_coverage(client, text)
        loader = _opened(stack, open_destination(to))
        infos = [] if loader is None else family(loader.streaming_destination().list_streams(), StreamKey(table, table))
        history, gaps = history_of(infos), gaps_of(infos)
        exists = loader is not None and loader.table_exists(table)
        added = [] if loader is None or not exists else loader._missing_columns(schema, table)
        rows = _estimate(client, text, covered, block_column)
    facts: dict[str, Any] = {
        'destination': asked.name,
        'table': table,
        'exists': exists,
        'columns': [{'name': field.name, 'arrow': str(field.type), 'there': there} for field, there in columns],
        'sql': None if exists else asked.create_statement(schema, table),
        'missing_columns': [field.name for field in added],
        'blocks': [r.to_dict() for r in covered],
        'done': [r.to_dict() for r in history],
        'gaps': [r.to_dict() for r in gaps],
        'estimated_rows': rows,
    }
    if as_json:
        emit('plan', **facts)
    else:
        _print(facts)


def _opened(
    stack: contextlib.ExitStack, destination: contextlib.AbstractContextManager[DataLoader[Any]]
) -> DataLoader[Any] | None:
    """The destination, None when there is nothing yet."""
    from amp.errors import DestinationError

    try:
        return stack.enter_context(destination)
    except DestinationError as error:
        if 'there is nothing at' in error.message:
            return None
        raise


def _columns(loader: str, schema: pa.Schema) -> list[tuple[Any, str]]:
    """Each field and its type there; raises SchemaError for one that has none."""
    from amp.loaders.type_tables import TABLES

    table = TABLES.get(loader)
    if table is None:
        return [(field, "the loader's own choice") for field in schema]
    return [(field, landing.column) for field, landing in zip(schema, table.landings(schema), strict=True)]


def _estimate(client: Any, sql: str, covered: Any, block_column: str) -> int | None:
    """Rows in proportion to those of the newest blocks; None where the query cannot be split."""
    from amp.backfill.split import Splittable
    from amp.errors import ConfigError

    if len(covered) != 1:
        return None
    [r] = covered
    try:
        split = Splittable(sql, block_column)
    except ConfigError:
        return None
    first = max(r.start, r.end - _SAMPLE_BLOCKS + 1)
    sampled = client.sql(f'SELECT count(*) AS n FROM ({split.of(first, r.end + 1)}) AS sample').to_arrow()
    return int(int(sampled['n'][0].as_py()) * (r.end - r.start + 1) / (r.end - first + 1))


def _print(facts: dict[str, Any]) -> None:
    state = 'is there' if facts['exists'] else 'would be made'
    print(f'{facts["table"]} in {facts["destination"]} {state}')
    width = max((len(column['name']) for column in facts['columns']), default=0)
    for column in facts['columns']:
        print(f'  {column["name"]:<{width}}  {column["arrow"]}  ->  {column["there"]}')
    if facts['sql']:
        print(f'  {facts["sql"]}')
    if facts['missing_columns']:
        missing = ', '.join(facts['missing_columns'])
        print(f'missing {missing}: refused, or added with --option schema_evolution=evolve')
    for title in ('blocks', 'done', 'gaps'):
        ranges = ', '.join(f'{r["network"]} {r["start"]:,}-{r["end"]:,}' for r in facts[title]) or 'none'
        print(f'{title:<7} {ranges}')
    rows = facts['estimated_rows']
    print(f'rows    {"not known" if rows is None else f"about {rows:,} in all blocks"}')
