"""scripts/token_labels.py: a token list as a CSV that a label can be made of."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from amp.config.label_manager import LabelManager

pytestmark = pytest.mark.unit

SCRIPT = Path(__file__).parents[2] / 'scripts' / 'token_labels.py'
TOKENS = [
    {'chainId': 1, 'address': '0x' + 'Ab' * 20, 'symbol': 'NULL', 'name': 'A "quoted", name', 'decimals': 18},
    {'chainId': 10, 'address': '0x' + 'aB' * 20, 'symbol': '007', 'name': 'Łódź', 'decimals': 6, 'logoURI': 'x'},
    {'chainId': 501000101, 'address': 'So11111111111111111111111111111111111111112', 'symbol': 'SOL', 'name': 'Solana',
     'decimals': 9},
]  # fmt: skip


def run(path: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, str(SCRIPT), str(path), *arguments], capture_output=True, check=False)


@pytest.fixture
def token_list(tmp_path: Path) -> Path:
    path = tmp_path / 'some.tokenlist.json'
    path.write_text(json.dumps({'name': 'Some', 'tokens': TOKENS}))
    return path


def test_the_csv_is_a_label(token_list: Path, tmp_path: Path) -> None:
    done = run(token_list)
    assert done.returncode == 0
    assert done.stderr == b'2 tokens, 1 left out for their addresses\n'
    (tmp_path / 'tokens.csv').write_bytes(done.stdout)
    manager = LabelManager(tmp_path)
    manager.add_label('tokens', 'tokens.csv')
    assert manager.get_label('tokens').to_pylist() == [
        {'chain_id': 1, 'address': b'\xab' * 20, 'symbol': 'NULL', 'name': 'A "quoted", name', 'decimals': 18},
        {'chain_id': 10, 'address': b'\xab' * 20, 'symbol': '007', 'name': 'Łódź', 'decimals': 6},
    ]


def test_one_chain(token_list: Path) -> None:
    done = run(token_list, '--chain', '10')
    assert done.stdout.decode().splitlines()[1:] == [f'10,0x{"aB" * 20},007,Łódź,6']


@pytest.mark.parametrize('text', ['', '[]', '{"tokens"', '{}'])
def test_what_is_no_token_list(tmp_path: Path, text: str) -> None:
    path = tmp_path / 'broken.json'
    path.write_text(text)
    done = run(path)
    assert done.returncode == 1
    assert b'is not a token list' in done.stderr
    assert b'Traceback' not in done.stderr
