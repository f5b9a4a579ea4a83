"""Whether the workers of this host are looked after: python -m workers.alive DATA, for health checks of containers.

The keeper of a worker touches a file every few seconds, whatever Redis is doing. Standard library only: it is asked
often.
"""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

LONGEST_S = 60.0


def mark(scratch: Path) -> Path:
    """The file, of this host."""
    return scratch / f"alive-{socket.gethostname()}"


def touch(scratch: Path) -> None:
    scratch.mkdir(parents=True, exist_ok=True)
    mark(scratch).touch()


def main() -> int:
    """0 when they are; 1 when nobody has touched the file for a minute."""
    try:
        age = time.time() - mark(Path(sys.argv[1]) / "scratch").stat().st_mtime
    except OSError as error:
        sys.stderr.write(f"no worker runs here: {error}\n")
        return 1
    return 0 if age < LONGEST_S else 1


if __name__ == "__main__":
    sys.exit(main())
