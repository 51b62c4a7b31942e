#!/usr/bin/env python3
"""Turns a token list (https://tokenlists.org) into a CSV of labels for `amp load --label` and LabelManager.

    npm install @uniswap/default-token-list
    python scripts/token_labels.py node_modules/@uniswap/default-token-list/build/uniswap-default.tokenlist.json \\
        --chain 1 > tokens.csv

One line a token: chain_id, address, symbol, name, decimals. A token is known by its chain and its address: take one
chain with `--chain` and join on the address, or several and join on both. Tokens whose address is not of 20 bytes (those
of other kinds of chains) are left out, and counted on standard error. Needs nothing but Python.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

COLUMNS = ('chain_id', 'address', 'symbol', 'name', 'decimals')
ADDRESS = re.compile(r'0x[0-9a-fA-F]{40}')


def rows(tokens: Iterable[dict[str, Any]], chains: set[int]) -> Iterator[tuple[Any, ...]]:
    """The tokens of these chains (none: of all), as they are written."""
    for token in tokens:
        if not chains or token['chainId'] in chains:
            yield token['chainId'], token['address'], token['symbol'], token['name'], token['decimals']


def write(tokens: Iterable[dict[str, Any]], chains: set[int], to: TextIO) -> tuple[int, int]:
    """How many lines were written, and how many tokens have an address of another kind."""
    writer = csv.writer(to, lineterminator='\n')
    writer.writerow(COLUMNS)
    written = left_out = 0
    for row in rows(tokens, chains):
        if ADDRESS.fullmatch(row[1]):
            writer.writerow(row)
            written += 1
        else:
            left_out += 1
    return written, left_out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('list', type=Path, help='the JSON of a token list')
    parser.add_argument('--chain', type=int, action='append', default=[], help='a chain id to keep; repeatable')
    arguments = parser.parse_args()
    try:
        tokens = json.loads(arguments.list.read_text(encoding='utf-8'))['tokens']
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f'error: {arguments.list} is not a token list: {error}', file=sys.stderr)
        return 1
    sys.stdout.reconfigure(encoding='utf-8')
    written, left_out = write(tokens, set(arguments.chain), sys.stdout)
    print(f'{written} tokens, {left_out} left out for their addresses', file=sys.stderr)
    return 0


if __name__ == '__main__':
    sys.exit(main())
