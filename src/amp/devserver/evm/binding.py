"""Statements that call the built-in functions, planned by DataFusion.

DataFusion knows a function of Python by one name, with fixed types of arguments and result. So every call that is
written differently gets a function of its own: the name in the statement is replaced (and put back in the names of
columns and in messages). Where arguments may be of several types, the first attempt to plan says which they are.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from functools import lru_cache, partial

import pyarrow as pa
from datafusion import DataFrame, SessionContext, SQLOptions, udf

from amp.devserver.evm.arrow_text import parse_types
from amp.devserver.evm.calls import Call, find_calls
from amp.devserver.evm.eth_call import Node, build_eth_call
from amp.devserver.evm.functions import BLOCK_NUM, BUILDERS, BY_TYPES, FunctionError, Implementation, Types
from amp.devserver.evm.words import Column

__all__ = ['BoundStatement', 'Functions']

# No value is of this type, and none becomes it: planning a call says the types that it found instead.
_ASKING = pa.binary(60_000)
_FOUND_TYPES = re.compile(r"satisfy a call to '(?P<name>\w+)' function: coercion from (?P<types>.*?) to the signature ")
_NO_ARGUMENTS = re.compile(r"'(?P<name>\w+)' does not support zero arguments")
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
        self.bind = lru_cache(maxsize=256)(self._bind)

    def _bind(self, sql: str) -> BoundStatement:
        """The statement with its calls; the same object for the same text, so that what it learns is kept."""
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


class BoundStatement:
    """One statement. It learns the types of arguments when it is planned, and plans the next time with them."""

    def __init__(self, sql: str, calls: list[tuple[Call, _Builder]]) -> None:
        self._sql = sql
        self._calls = calls
        self._types: dict[str, list[pa.DataType]] = {}
        self._apart = False

    def plan(self, context: SessionContext, options: SQLOptions) -> DataFrame:
        """The statement's frame. Raises what DataFusion raises, and FunctionError for a call that is refused."""
        while True:
            names = self._names()
            self._register(context, names)
            try:
                frame = context.sql_with_options(self._rewritten(names), options)
                if self._asks(names):
                    # Calls in ON, ORDER BY and EXISTS are looked at by the optimizer only.
                    frame.optimized_logical_plan()
            except Exception as error:  # DataFusion raises nothing more exact while it optimizes
                if self._learn(str(error), names):
                    continue
                if isinstance(error, (ValueError, RuntimeError)):
                    raise
                raise FunctionError(_told_plainly(str(error))) from error
            return frame

    def visible(self, text: str) -> str:
        """Names of columns and messages as they would be if DataFusion knew the functions by their own names."""
        for (call, _), name in zip(self._calls, self._names(), strict=True):
            text = text.replace(name, call.display)
        return _told_plainly(text)

    def visible_schema(self, schema: pa.Schema) -> pa.Schema:
        """The schema with the functions' own names in its columns' names."""
        if not self._calls:
            return schema
        return pa.schema([field.with_name(self.visible(field.name)) for field in schema])

    def _names(self) -> list[str]:
        """A name for each call: one for all that are written alike, so that GROUP BY finds what SELECT says."""
        known: dict[object, int] = {}
        return [
            f'{call.function}__amp{known.setdefault(at if self._apart else call.key, len(known))}__'
            for at, (call, _) in enumerate(self._calls)
        ]

    def _rewritten(self, names: list[str]) -> str:
        parts, at = [], 0
        for (call, _), name in zip(self._calls, names, strict=True):
            parts += [self._sql[at : call.start], name]
            at = call.end
        return ''.join([*parts, self._sql[at:]])

    def _asks(self, names: list[str]) -> bool:
        return any(self._asks_for(call, name) for (call, _), name in zip(self._calls, names, strict=True))

    def _asks_for(self, call: Call, name: str) -> bool:
        return call.function in BY_TYPES and bool(call.arguments) and name not in self._types

    def _register(self, context: SessionContext, names: list[str]) -> None:
        for name, (call, builder) in dict(zip(names, self._calls, strict=True)).items():
            if self._asks_for(call, name):
                made = Implementation((_ASKING,), pa.field('result', BY_TYPES[call.function]), _asked)
            else:
                try:
                    made = builder(self._types.get(name, []))
                except FunctionError as error:
                    raise FunctionError(_planning_error(str(error))) from error
            arguments = [pa.field('argument', type_) for type_ in made.arguments]
            context.register_udf(udf(made.run, arguments, made.result, made.volatility, name))
        context.register_udf(udf(BLOCK_NUM.run, [], BLOCK_NUM.result, BLOCK_NUM.volatility, 'block_num'))

    def _learn(self, text: str, names: list[str]) -> bool:
        """Take the types that a message tells; False when it tells of something else."""
        found = _FOUND_TYPES.search(text)
        if found is None or found['name'] not in names:
            return False
        name = found['name']
        call = self._calls[names.index(name)][0]
        if call.function not in BY_TYPES:
            return False
        if name in self._types and not self._apart:
            # Two calls that are written alike mean columns of different types.
            self._apart = True
            self._types.clear()
            return True
        types = parse_types(found['types'])
        if types is None:
            raise FunctionError(f'Error during planning: {call.display}: unsupported type among {found["types"]}')
        if self._types.get(name) == types:
            return False
        self._types[name] = types
        return True


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
