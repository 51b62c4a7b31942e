"""A local Amp for tests, demos and laptops: real tables over the real wire, and misbehaviour on demand."""

from __future__ import annotations

from amp.devserver.faults import Fault, Faults
from amp.devserver.local import LocalAmp

__all__ = ['Fault', 'Faults', 'LocalAmp']
