"""`make demo`: upload, train, prune, compile, deploy and predict, over HTTP, and one table of what was measured."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from enginesmith import ApiError, Client, EnginesmithError, Job, Version
from enginesmith.progress import follow
from rich.console import Console
from rich.markup import escape

from demo.service import StartFailed, service
from demo.table import WIDTH, Row, busiest, results

NAME = "digits"
TARGETS = ("openvino", "onnxruntime")
SGD: dict[str, Any] = {
    "optimizer": "sgd",
    "momentum": 0.9,
    "schedule": "onecycle",
    "loss": "cross_entropy",
    "batch_size": 32,
}
TRAIN: dict[str, Any] = SGD | {"epochs": 30, "lr": 0.05}
FINETUNE: dict[str, Any] = SGD | {"epochs": 10, "lr": 0.02}
WANTED_ACCURACY = 0.97
WANTED_DIFFERENCE = 1e-6


class DemoFailed(Exception):
    """A promise of the demo was not kept."""


class Demo:
    """The steps, each through the public client."""

    def __init__(self, client: Client, console: Console, folder: Path) -> None:
        self.client = client
        self.console = console
        self.folder = folder

    def say(self, text: str) -> None:
        self.console.print(f"[green]✓[/] {escape(text)}", highlight=False, soft_wrap=True)

    def job(self, title: str, job: Job) -> Version:
        """Follows a job with a progress bar. Raises JobFailed, DemoFailed for a version that was rejected."""
        done = follow(self.client, job, self.console, title)
        if done.result is None or done.result.get("model") is None:
            raise DemoFailed(f"{title}: the job succeeded and made no version")
        if done.result.get("verdict") == "rejected":
            raise DemoFailed(f"{title}: {done.result.model} was rejected: {done.result.get('report')}")
        return self.client.models.version(done.result.model)

    def upload(self, arrays: dict[str, Any]) -> tuple[str, Version]:
        import torch

        from demo.net import SimpleCNN

        dataset = self.client.datasets.push(NAME, **arrays)
        rows = " · ".join(
            f"{len(arrays[key]):,} {part}" for key, part in (("y", "train"), ("y_val", "val"), ("y_test", "test"))
        )
        self.say(f"data set {NAME}: {rows}")
        torch.manual_seed(0)
        job = self.client.push(
            SimpleCNN().eval(), NAME, example=torch.zeros(2, 1, 28, 28), labels=[str(n) for n in range(10)],
            task="classification", wait=False,
        )  # fmt: skip
        return f"{NAME}@{dataset.get('version', 1)}", self.job("upload, traced here: its code stays here", job)

    def networks(self, dataset: str, uploaded: Version) -> list[Row]:
        """Trained, then pruned in two ways."""
        submit = self.client.jobs.submit
        trained = self.job("train", submit("train", model=uploaded.ref, dataset=dataset, **TRAIN))
        quality = trained.metrics.quality
        if quality is None or quality.value < WANTED_ACCURACY:
            raise DemoFailed(f"trained to {quality and quality.value} on the test split, not to {WANTED_ACCURACY}")
        zeroed = self.job(
            "prune l1_unstructured",
            submit("prune", model=trained.ref, dataset=dataset, method="l1_unstructured", amount=0.5),
        )
        smaller = self.job(
            "prune channel, fine-tune",
            submit("prune", model=trained.ref, dataset=dataset, method="channel", amount=0.5, finetune=FINETUNE),
        )
        return [
            Row(trained, "train"),
            Row(zeroed, "prune l1"),
            Row(smaller, "prune channel"),
        ]

    def engines(self, dataset: str, source: Row) -> list[Row]:
        rows = []
        for target in TARGETS:
            job = self.client.jobs.submit("convert", model=source.version.ref, target=target, dataset=dataset)
            rows.append(Row(self.job(f"convert {source.version.ref} to {target}", job), "convert"))
        return rows

    def serve(self, engine: Version, arrays: dict[str, Any]) -> str:
        """Deploys an engine and asks it over HTTP. Raises DemoFailed where its answers are not the engine's own."""
        from demo.engines import largest_difference, own_answers

        name = f"{NAME}-{engine.version}"
        self.client.deploy(name, engine)
        files = self.client.models.download(engine.ref, self.folder / name)
        x, answers, own = arrays["x_test"], [], []
        for start in range(0, len(x), 64):
            rows = x[start : start + 64]
            answers.append(next(iter(self.client.predict(name, rows).outputs.values())))
            own.append(own_answers(engine.format, files, rows))
        served, direct = np.concatenate(answers), np.concatenate(own)
        difference = largest_difference(served, direct)
        if difference > WANTED_DIFFERENCE or not np.array_equal(served.argmax(1), direct.argmax(1)):
            raise DemoFailed(f"{engine.ref}: the answers over HTTP differ from the engine's own by {difference:.2g}")
        accuracy = float((served.argmax(1) == arrays["y_test"]).mean())
        quality = engine.metrics.quality
        if quality is not None and abs(quality.value - accuracy) > 1 / len(x):
            raise DemoFailed(f"{engine.ref}: {accuracy:.2%} right over HTTP, but its record says {quality.value:.2%}")
        self.say(
            f"deploy {engine.ref} on {engine.format}, {len(x)} predictions over HTTP: {accuracy:.2%} right, "
            f"{difference:.1g} from the engine's own answers"
        )
        return name

    def whole_road(self) -> list[Row]:
        from demo.data import digits

        arrays = digits()
        dataset, uploaded = self.upload(arrays)
        rows: list[Row] = []
        for network in self.networks(dataset, uploaded):
            rows += [network, *self.engines(dataset, network)]
        names = [self.serve(row.version, arrays) for row in rows if row.version.format in TARGETS]
        found = self.client.predict(names[-1], arrays["x_test"][:1].tolist(), top_k=1)
        guess = found.predictions[0][0]
        self.say(f"the first test image is a {guess['label']} ({guess['score']:.1%}), says {found.model} in JSON")
        return rows


def main() -> int:
    # Wide enough for the table where nobody looks at a terminal.
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    started = time.monotonic()
    try:
        with service() as (url, folder), Client(url) as client:
            console.print(f"[green]✓[/] the service runs at {url}", highlight=False)
            rows = Demo(client, console, folder).whole_road()
            # A terminal that is too narrow wraps the lines; nothing is cut off.
            Console(width=max(console.width, WIDTH)).print(results(rows, rows[0].version))
            load, cores = busiest(rows), os.cpu_count() or 1
            if load > cores * 1.25:
                # torch eager suffers most from neighbours, which flatters the engines.
                console.print(
                    f"[yellow]![/] the machine was busy with other work (load {load:.1f} on {cores} cores): "
                    "do not trust the speed-ups; run it again when it is idle",
                    highlight=False,
                    soft_wrap=True,
                )
    except (EnginesmithError, StartFailed, DemoFailed) as error:
        # str() of an ApiError holds its detail, the fields and the hint.
        console.print(f"[red]✗[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        hint = getattr(error, "hint", None)
        if hint and not isinstance(error, ApiError):
            console.print(f"  hint: {hint}", markup=False, highlight=False, soft_wrap=True)
        return 1
    seconds = time.monotonic() - started
    console.print(f"done in {seconds:.0f} s on {os.cpu_count()} cores; nothing was left behind", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
