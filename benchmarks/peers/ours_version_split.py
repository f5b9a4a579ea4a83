"""As ours_version, with the engine's threads divided among as many instances."""

from __future__ import annotations

from benchmarks.peers import options
from benchmarks.peers.ours_version import main

if __name__ == "__main__":
    main(instances=options().threads)
