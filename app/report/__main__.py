"""Draws one page: JSON on stdin, HTML on stdout. matplotlib lives and dies here, not in the process that serves."""

from __future__ import annotations

import json
import logging
import resource
import sys
import warnings

from app.report.page import page

# A page takes about 100 MB and two seconds. What takes this much is not a page.
MEMORY_BYTES, CPU_S = 1 << 30, 60


def main() -> int:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    warnings.simplefilter("ignore")  # glyphs that DejaVu has not; the browser has its own fonts
    given = json.loads(sys.stdin.buffer.read())
    from app.report.drawing import draw, key

    sys.stdout.buffer.write(page(given, draw, key).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
