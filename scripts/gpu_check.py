"""Says what the GPU parts find on this machine: the driver, torch's view of it, and every runtime with its reason."""

from __future__ import annotations

import sys

from app import runtimes


def main() -> int:
    import torch

    lines = [
        f"torch {torch.__version__}: " + (torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU")
    ]
    for name in runtimes.names():
        found = runtimes.get(name).available()
        facts = " · ".join(part for part in (found.version, found.device, ", ".join(found.precisions)) if part)
        lines.append(f"{name}: {facts if found.ok else 'not here: ' + found.reason}")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
