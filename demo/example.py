"""`make example`: a trained network and its data as files, for the README's curl lines to send."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np


def write(folder: Path, epochs: int = 15) -> float:
    """net.pt (a plain state_dict), net.json (what that does not say), digits.npz, three.json; the test accuracy."""
    import torch
    from enginesmith.export import export
    from torch.nn.functional import cross_entropy

    from demo.data import digits
    from demo.net import SimpleCNN

    arrays = digits()
    torch.manual_seed(0)
    net = SimpleCNN()
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    x, y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(x)), 64):
            optimizer.zero_grad()
            torch.autograd.backward(cross_entropy(net(x[rows]), y[rows]))
            optimizer.step()
    net.eval()
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), folder / "net.pt")
    traced = export(net, torch.zeros(2, 1, 28, 28))
    manifest = {
        "name": "digits",
        "task": "classification",
        "labels": [str(n) for n in range(10)],
        "architecture": traced.architecture,
        "signature": traced.signature,
    }
    (folder / "net.json").write_text(json.dumps(manifest, indent=1))
    np.savez_compressed(folder / "digits.npz", allow_pickle=False, **arrays)
    three = arrays["x_test"][arrays["y_test"] == 3][:1]
    (folder / "three.json").write_text(json.dumps({"inputs": three.tolist(), "top_k": 3}))
    with torch.inference_mode():
        right = net(torch.from_numpy(arrays["x_test"])).argmax(1).numpy() == arrays["y_test"]
    return float(right.mean())


def main() -> int:
    import torch

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("example"))
    folder = parser.parse_args().folder
    # So small a network gains nothing from a second thread, and on a busy machine the two wait for each other.
    torch.set_num_threads(1)
    accuracy = write(folder)
    sys.stdout.write(f"{folder}: net.pt ({accuracy:.2%} on the test split), net.json, digits.npz, three.json\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
