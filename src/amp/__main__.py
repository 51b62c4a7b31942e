"""`python -m amp` is the command line."""

from __future__ import annotations

from amp.cli import main

if __name__ == '__main__':
    main()
