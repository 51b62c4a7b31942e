"""Anvil, the test node of Foundry: found or installed through npm, started on a free port, driven by JSON-RPC."""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Self

from amp.devserver.node import EvmNode
from amp.errors import ConfigError, ConnectError

__all__ = ['Anvil', 'find_anvil', 'install_anvil']

_PACKAGES = ('@foundry-rs/anvil@1.7.1', '@openzeppelin/contracts@4.9.6')
_ERC20 = 'node_modules/@openzeppelin/contracts/build/contracts/ERC20PresetFixedSupply.json'
_TRANSFER = 'a9059cbb'
_GAS = hex(3_000_000)
_PROCESSORS = {'x86_64': 'amd64', 'amd64': 'amd64', 'aarch64': 'arm64', 'arm64': 'arm64'}
_SYSTEMS = {'Linux': 'linux', 'Darwin': 'darwin', 'Windows': 'win32'}
_INSTALL_SECONDS = 300
_START_SECONDS = 20


def _cache_dir() -> Path:
    configured = os.environ.get('AMP_CACHE_DIR')
    return (Path(configured) if configured else Path.home() / '.cache' / 'amp') / 'anvil'


def _binary_in(cache_dir: Path) -> Path:
    system = _SYSTEMS.get(platform.system(), 'linux')
    processor = _PROCESSORS.get(platform.machine().lower(), 'amd64')
    name = 'anvil.exe' if system == 'win32' else 'anvil'
    return cache_dir / 'node_modules' / '@foundry-rs' / f'anvil-{system}-{processor}' / 'bin' / name


def find_anvil(cache_dir: Path | None = None) -> Path | None:
    """The anvil binary: the one that `install_anvil` put in the cache, or the one on the PATH; None without either."""
    cached = _binary_in(cache_dir or _cache_dir())
    if cached.is_file():
        return cached
    on_path = shutil.which('anvil')
    return Path(on_path) if on_path else None


def install_anvil(cache_dir: Path | None = None) -> Path:
    """Install anvil and the ERC-20 contract through npm, unless they are there. Returns the binary.

    Safe to call from several processes at once. Raises ConfigError when npm is missing or fails.
    """
    folder = cache_dir or _cache_dir()
    binary = _binary_in(folder)
    if binary.is_file() and (folder / _ERC20).is_file():
        return binary
    # A package for Python brings Node.js too, into the folder of the interpreter.
    places = os.pathsep.join([os.environ.get('PATH', os.defpath), str(Path(sys.executable).parent)])
    npm = shutil.which('npm', path=places)
    if npm is None or shutil.which('node', path=places) is None:
        raise ConfigError('installing anvil needs npm', hint='install Node.js, or put anvil on the PATH')
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix='installing-') as scratch:
        (Path(scratch) / 'package.json').write_text('{"private": true}\n')
        command = [npm, 'install', '--no-audit', '--no-fund', '--ignore-scripts', '--loglevel=error', *_PACKAGES]
        try:
            done = subprocess.run(  # noqa: S603
                command, cwd=scratch, capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise ConfigError(f'npm install did not finish within {_INSTALL_SECONDS} s') from error
        if done.returncode != 0 or not _binary_in(Path(scratch)).is_file():
            raise ConfigError(f'npm could not install anvil: {done.stderr.strip() or "no binary for this platform"}')
        _put_in_place(Path(scratch) / 'node_modules', folder / 'node_modules')
    binary.chmod(0o755)
    return binary


def _put_in_place(made: Path, place: Path) -> None:
    """Another process may have been faster: what is complete stays."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists() and not (place.parent / _ERC20).is_file():
        shutil.rmtree(place)
    try:
        made.rename(place)
    except OSError:
        if not _binary_in(place.parent).is_file():
            raise


class Anvil:
    """A running anvil, as a context manager. Blocks come when asked for, or every `block_time` seconds.

    Ten funded accounts are in `accounts`. Raises ConfigError when there is no anvil to start.
    """

    def __init__(self, binary: Path | None = None, *, port: int = 0, block_time: float | None = None) -> None:
        found = binary or find_anvil()
        if found is None:
            raise ConfigError('anvil is not installed', hint='install_anvil() fetches it through npm')
        self._binary = found
        self._port = port
        self._block_time = block_time
        self._process: subprocess.Popen[bytes] | None = None
        self.node = EvmNode('http://127.0.0.1:0')
        self.accounts: list[str] = []

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """`http://127.0.0.1:port`."""
        return self.node.url

    @property
    def block_number(self) -> int:
        """The number of the latest block."""
        return int(self.call('eth_blockNumber'), 16)

    def start(self) -> Self:
        """Start the process and wait until it answers. Raises ConnectError."""
        self._port = self._port or _free_port()
        mining = ['--no-mining'] if self._block_time is None else ['--block-time', str(self._block_time)]
        command = [str(self._binary), '--host', '127.0.0.1', '--port', str(self._port), '--silent', *mining]
        self._process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.node = EvmNode(f'http://127.0.0.1:{self._port}')
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                self.accounts = self.call('eth_accounts')
            except ConnectError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    raise
                time.sleep(0.02)
            else:
                return self

    def stop(self) -> None:
        """Stop this process."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def call(self, method: str, *params: object) -> Any:
        """The result of a JSON-RPC call. Raises ConnectError or NodeError."""
        return self.node.call(method, *params)

    def mine(self, blocks: int = 1) -> None:
        """Mine blocks; the first holds the waiting transactions."""
        self.call('anvil_mine', hex(blocks))

    def reorg(self, depth: int) -> None:
        """Replace the last `depth` blocks by empty ones; the chain is as high as before."""
        self.call('anvil_reorg', depth, [])

    def send(self, transaction: dict[str, str]) -> str:
        """Send a transaction of an unlocked account; its hash."""
        return str(self.call('eth_sendTransaction', {'from': self.accounts[0], 'gas': _GAS} | transaction))

    def deploy_erc20(self, name: str = 'Token', symbol: str = 'TKN', supply: int = 10**24) -> str:
        """Deploy an ERC-20 whose whole supply is the first account's, and mine its block; its address."""
        artifact = self._artifact()
        code = artifact['bytecode'] + _abi_words(name, symbol, supply, self.accounts[0])
        sent = self.send({'data': code})
        self.mine()
        return str(self.call('eth_getTransactionReceipt', sent)['contractAddress'])

    def transfer(self, token: str, to: str, amount: int, *, sender: str | None = None) -> str:
        """Send an ERC-20 transfer, to be mined later; its hash."""
        data = f'0x{_TRANSFER}{_address_word(to)}{amount:064x}'
        return self.send({'from': sender or self.accounts[0], 'to': token, 'data': data})

    def _artifact(self) -> dict[str, Any]:
        beside = [parent / _ERC20 for parent in self._binary.parents]
        for path in [*beside, _cache_dir() / _ERC20]:
            if path.is_file():
                loaded: dict[str, Any] = json.loads(path.read_text())
                return loaded
        raise ConfigError('the ERC-20 contract is not installed', hint='install_anvil() fetches it through npm')


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return int(probe.getsockname()[1])


def _address_word(address: str) -> str:
    return address.removeprefix('0x').lower().rjust(64, '0')


def _abi_words(name: str, symbol: str, supply: int, owner: str) -> str:
    """The constructor's (string, string, uint256, address) in hex."""
    first, second = _abi_text(name), _abi_text(symbol)
    head = [4 * 32, 4 * 32 + len(first) // 2, supply]
    return ''.join(f'{word:064x}' for word in head) + _address_word(owner) + first + second


def _abi_text(text: str) -> str:
    data = text.encode().hex()
    return f'{len(data) // 2:064x}' + data.ljust(-(-len(data) // 64) * 64, '0')
