"""The process of a job outlives a SIGTERM until its lease has handed the job back."""

from __future__ import annotations

import subprocess
import sys

# All threads of a process share what a signal does, and one that has it open is enough to die of it.
ASKED = """
import os, sys
import workers.horse

def settings():
    import numpy  # which starts threads
    raise SystemExit

workers.horse.Settings = settings
sys.argv = ["", "worker", "cpu", "job", "execution"]
try:
    workers.horse.main()
except SystemExit:
    for thread in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{thread}/status") as status:
            print(next(line.split()[1] for line in status if line.startswith("SigBlk")))
"""


def test_every_thread_leaves_sigterm_to_the_lease() -> None:
    done = subprocess.run([sys.executable, "-c", ASKED], capture_output=True, text=True, check=True)
    masks = done.stdout.split()
    assert masks
    assert all(int(mask, 16) >> 14 & 1 for mask in masks), masks
