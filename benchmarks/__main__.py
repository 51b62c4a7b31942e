"""Every benchmark, one after the other; the exit code is 1 when a claim was missed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

if __name__ == '__main__':
    folder = Path(__file__).parent
    codes = []
    for script in sorted(folder.glob('bench_*.py')):
        print(f'== {script.name}', flush=True)
        codes.append(subprocess.run([sys.executable, str(script)], check=False).returncode)
    sys.exit(1 if any(codes) else 0)
