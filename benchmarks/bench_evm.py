"""Decoding logs with the SQL functions of the local Amp: logs a second, through DataFusion and without it.

    python -m benchmarks.bench_evm [LOGS]

The target is 200,000 logs a second for an ERC-20 Transfer, in a query that decodes and returns all of its fields.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable

import pyarrow as pa
from benchmarks._harness import Report, interleaved

from amp.devserver import schemas
from amp.devserver.chain import Chain
from amp.devserver.engine import Engine
from amp.devserver.evm.decode import Calldata, decode_sequence
from amp.devserver.evm.encode import encode_sequence
from amp.devserver.evm.signatures import parse_type
from amp.devserver.sql import Statement

LOGS = 400_000
TARGET = 200_000
TRANSFER = 'Transfer(address indexed from, address indexed to, uint256 value)'
SWAP = (
    'Swap(address indexed sender, address indexed recipient, int256 amount0, int256 amount1, uint160 price, '
    'uint128 liquidity, int24 tick)'
)
ORDERS = 'Orders(address indexed maker, (address token, uint128 amount)[] orders, string memo)'


def word(number: int) -> bytes:
    return (number % 2**256).to_bytes(32, 'big')


def logs(count: int, data: Callable[[random.Random], bytes]) -> pa.RecordBatch:
    rng = random.Random(1)
    # A thousand different rows over and over: making them is not what is measured.
    topics = [bytes(12) + rng.randbytes(20) for _ in range(1000)]
    values = [data(rng) for _ in range(1000)]
    order = pa.array([at % 1000 for at in range(count)])
    columns = {
        'topic1': pa.array(topics, pa.binary(32)).take(order),
        'topic2': pa.array(topics[::-1], pa.binary(32)).take(order),
        'topic3': pa.nulls(count, pa.binary(32)),
        'data': pa.array(values).take(order),
        'block_num': pa.array(range(count), pa.uint64()),
    }
    for field in schemas.LOGS:
        if field.name not in columns:
            columns[field.name] = _filler(field.type, count)
    return pa.RecordBatch.from_arrays([columns[field.name] for field in schemas.LOGS], schema=schemas.LOGS)


def _filler(type_: pa.DataType, count: int) -> pa.Array:
    value = bytes(type_.byte_width) if pa.types.is_fixed_size_binary(type_) else 0
    return pa.repeat(pa.scalar(value, pa.int64()).cast(type_) if value == 0 else pa.scalar(value, type_), count)


def orders(rng: random.Random) -> bytes:
    type_ = parse_type('((address,uint128)[],string)')
    item = pa.struct([('t', pa.binary(20)), ('a', pa.decimal128(38, 0))])
    listed = [{'t': rng.randbytes(20), 'a': rng.getrandbits(90)} for _ in range(rng.randrange(4))]
    row = pa.array(
        [{'l': listed, 'm': 'a memo of some length, it is' * rng.randrange(3)}],
        pa.struct([('l', pa.list_(item)), ('m', pa.string())]),
    )
    return encode_sequence(type_.items, [row.field(0), row.field(1)], 1)[0].as_py()


def query(engine: Engine, signature: str, batch: pa.RecordBatch) -> Callable[[], object]:
    sql = f"SELECT evm_decode_log(topic1, topic2, topic3, data, '{signature}') AS event FROM eth_rpc.logs"
    prepared = engine.prepare(Statement(sql))
    batches = [batch.slice(at, 8192) for at in range(0, batch.num_rows, 8192)]

    def run() -> None:
        found = sum(result.num_rows for result in engine.run(prepared, lambda _: batches))
        assert found == batch.num_rows

    return run


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else LOGS
    engine = Engine({'eth_rpc': Chain('simnet', schemas.EVM_RPC)})
    transfers = logs(count, lambda rng: word(rng.getrandbits(rng.choice([20, 60, 90]))))
    swaps = logs(
        count,
        lambda rng: b''.join(
            map(
                word,
                (
                    rng.getrandbits(70),
                    -rng.getrandbits(70),
                    rng.getrandbits(150),
                    rng.getrandbits(120),
                    -rng.getrandbits(20),
                ),
            )
        ),
    )
    nested = logs(count, orders)
    candidates = {
        'Transfer, in SQL': query(engine, TRANSFER, transfers),
        'Swap, in SQL': query(engine, SWAP, swaps),
        'Orders (dynamic), in SQL': query(engine, ORDERS, nested),
        'value alone, one column': lambda: decode_sequence([parse_type('uint256')], Calldata(transfers['data'])),
    }
    timings = interleaved(candidates, repetitions=5)
    for timing in timings.values():
        print(f'{timing}   {count / timing.median:12,.0f} logs/s', flush=True)
    report = Report()
    report.at_least('ERC-20 Transfer, 1,000 logs/s', count / timings['Transfer, in SQL'].median / 1000, TARGET / 1000)
    report.at_least('Swap, 1,000 logs/s', count / timings['Swap, in SQL'].median / 1000, TARGET / 1000)
    return report.finish()


if __name__ == '__main__':
    raise SystemExit(main())
