"""Statements that call the built-in functions, planned by DataFusion.

DataFusion knows a function of Python by one name, with fixed types of arguments and result. So every call that is
written differently gets a function of its own: the name in the statement is replaced (and put back in the names of
columns and in messages). Where arguments may be of several types, the first attempt to plan says which they are.
"""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import pyarrow as pa
from datafusion import DataFrame, SessionContext, SQLOptions, udf

from amp.devserver.evm.arrow_text import parse_types
from amp.devserver.evm.calls import Call, find_calls, with_block_num
from amp.devserver.evm.eth_call import Node, build_eth_call
from amp.devserver.evm.functions import BLOCK_NUM, BUILDERS, BY_TYPES, FunctionError, Implementation, Types
from amp.devserver.evm.words import Column
from amp.devserver.limits import kept

__all__ = ['BoundStatement', 'Functions', 'streamed']

# No value is of this type, and none becomes it: planning a call says the types that it found instead.
_ASKING = pa.binary(60_000)
# A function and not the bare column: a statement may select both.
_OF_ROW = 'block_num__amp__'
_FOUND_TYPES = re.compile(r"satisfy a call to '(?P<name>\w+)' function: coercion from (?P<types>.*?) to the signature ")
_PYTHON_ERROR = re.compile(
    r"Execution error: PyErr \{ type: <class '(?P<kind>[^']*)'>, value: \w+\((?P<told>.*?)\), traceback: .* \}",
    re.DOTALL,
)

_Builder = Callable[[Types], Implementation]


class Functions:
    """The functions that statements may call; `nodes` are those that the datasets' eth_call asks."""

    def __init__(self, nodes: Mapping[str, Node], dataset_name: Callable[[str], str | None]) -> None:
        self._nodes = dict(nodes)
        self._dataset_name = dataset_name
        self.bind = kept(256)(self._bind)

    def _bind(self, sql: str) -> BoundStatement:
        """The statement with its calls; the same object for the same text, unless that is long, so that what it learns is kept."""
        calls = find_calls(sql, BUILDERS, {'eth_call'})
        return BoundStatement(sql, [(call, self._builder(call)) for call in calls])

    def _builder(self, call: Call) -> _Builder:
        if call.dataset is None:
            return partial(BUILDERS[call.function], call)
        name = self._dataset_name(call.dataset)
        node = None if name is None else self._nodes.get(name)
        return partial(_no_node, call) if node is None else partial(build_eth_call, node)


def _no_node(call: Call, _: Types) -> Implementation:
    raise FunctionError(f"Invalid function '{call.display}': the dataset has no RPC provider")


@dataclass
class _Naming:
    """A name for each call, and the types of arguments that are known so far for a name."""

    names: list[str]
    types: dict[str, list[pa.DataType]] = field(default_factory=dict)

    def asks_for(self, call: Call, name: str) -> bool:
        """True while the types of the call's arguments have to be found out."""
        return call.function in BY_TYPES and bool(call.arguments) and name not in self.types


class BoundStatement:
    """One statement. It learns the types of arguments when it is planned, and plans the next time with them."""

    def __init__(self, sql: str, calls: list[tuple[Call, _Builder]]) -> None:
        self._sql = sql
        self._calls = calls
        shared = _Naming(_names(calls, apart=False))
        apart = _Naming(_names(calls, apart=True))
        # Calls that are written alike may mean columns of different types, and then need names of their own. But GROUP
        # BY must find what SELECT says, and then they have the same types.
        self._namings = [shared] if shared.names == apart.names else [apart, shared]

    def plan(self, context: SessionContext, options: SQLOptions) -> DataFrame:
        """The statement's frame. Raises what DataFusion raises, and FunctionError for a call that is refused."""
        *others, last = self._namings
        for naming in others:
            with contextlib.suppress(ValueError, RuntimeError):
                frame = self._plan(context, options, naming)
                self._namings = [naming]
                return frame
        return self._plan(context, options, last)

    def visible(self, text: str) -> str:
        """Names of columns and messages as they would be if DataFusion knew the functions by their own names."""
        for at, (call, _) in enumerate(self._calls):
            text = text.replace(_name(call, at), call.display)
        return _told_plainly(text.replace(_OF_ROW, 'block_num'))

    def visible_schema(self, schema: pa.Schema) -> pa.Schema:
        """The schema with the functions' own names in its columns' names."""
        if not self._calls:
            return schema
        return pa.schema([column.with_name(self.visible(column.name)) for column in schema])

    def _plan(self, context: SessionContext, options: SQLOptions, naming: _Naming) -> DataFrame:
        while True:
            self._register(context, naming)
            try:
                frame = context.sql_with_options(self._rewritten(naming.names), options)
                if any(naming.asks_for(call, name) for (call, _), name in zip(self._calls, naming.names, strict=True)):
                    # Calls in ON, ORDER BY and EXISTS are looked at by the optimizer only.
                    frame.optimized_logical_plan()
            except Exception as error:  # DataFusion raises nothing more exact while it optimizes
                if self._learn(str(error), naming):
                    continue
                if isinstance(error, (ValueError, RuntimeError)):
                    raise
                raise FunctionError(_told_plainly(str(error))) from error
            return frame

    def _rewritten(self, names: list[str]) -> str:
        parts, at = [], 0
        for (call, _), name in zip(self._calls, names, strict=True):
            parts += [self._sql[at : call.start], name]
            at = call.end
        return ''.join([*parts, self._sql[at:]])

    def _register(self, context: SessionContext, naming: _Naming) -> None:
        for name, (call, builder) in dict(zip(naming.names, self._calls, strict=True)).items():
            if naming.asks_for(call, name):
                made = Implementation((_ASKING,), pa.field('result', BY_TYPES[call.function]), _asked)
            else:
                try:
                    made = builder(naming.types.get(name, []))
                except FunctionError as error:
                    raise FunctionError(_planning_error(str(error))) from error
            arguments = [pa.field('argument', type_) for type_ in made.arguments]
            context.register_udf(udf(made.run, arguments, made.result, made.volatility, name))
        context.register_udf(udf(BLOCK_NUM.run, [], BLOCK_NUM.result, BLOCK_NUM.volatility, 'block_num'))
        context.register_udf(udf(_itself, [BLOCK_NUM.result.type], BLOCK_NUM.result, 'immutable', _OF_ROW))

    def _learn(self, text: str, naming: _Naming) -> bool:
        """Take the types that a message tells; False when it tells of something else."""
        found = _FOUND_TYPES.search(text)
        if found is None or found['name'] not in naming.names or found['name'] in naming.types:
            return False
        call = self._calls[naming.names.index(found['name'])][0]
        if call.function not in BY_TYPES:
            return False
        types = parse_types(found['types'])
        if types is None:
            raise FunctionError(f'Error during planning: {call.display}: unsupported type among {found["types"]}')
        naming.types[found['name']] = types
        return True


def _name(call: Call, at: int) -> str:
    return f'{call.function}__amp{at}__'


def _names(calls: list[tuple[Call, _Builder]], *, apart: bool) -> list[str]:
    """Names by which calls that are written alike are the same function, except, when `apart`, those that go by types."""
    known: dict[object, int] = {}
    keys = [at if apart and call.function in BY_TYPES else call.key for at, (call, _) in enumerate(calls)]
    return [_name(call, known.setdefault(key, at)) for at, (key, (call, _)) in enumerate(zip(keys, calls, strict=True))]


def streamed(sql: str) -> str:
    """The statement as a stream runs it: `block_num()` is the number of the row's block."""
    return with_block_num(sql, _OF_ROW)


def _itself(column: Column) -> Column:
    return column


def _asked(*_: Column) -> Column:
    raise FunctionError('the types of the arguments are not known')


def _planning_error(text: str) -> str:
    # An error with a context has its prefix after that.
    return text if '\ncaused by\n' in text else f'Error during planning: {text}'


def _told_plainly(text: str) -> str:
    """A message of DataFusion without what Python puts around it."""
    return _PYTHON_ERROR.sub(_told, text.removeprefix('DataFusion error: '))


def _told(match: re.Match[str]) -> str:
    try:
        told = str(ast.literal_eval(match['told']))
    except (ValueError, SyntaxError):
        told = match['told']
    return _planning_error(told) if match['kind'].endswith('FunctionError') else f'Execution error: {told}'
