"""The functions of Amp's SQL that know the EVM: decoding, encoding, topics, units, and calls of contracts."""

from __future__ import annotations

from amp.devserver.evm.binding import BoundStatement, Functions, streamed
from amp.devserver.evm.calls import calls_block_num
from amp.devserver.evm.functions import FunctionError

__all__ = ['BoundStatement', 'FunctionError', 'Functions', 'calls_block_num', 'streamed']
