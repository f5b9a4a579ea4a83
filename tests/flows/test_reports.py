"""Over a running service: the page of a real job, a version's recipe, and the same done again to another checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from enginesmith import Client, OtherNetwork, cli


def network(width: int = 8) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.ReLU(), torch.nn.Linear(width, 3))


def pushed(client: Client, name: str, width: int = 8) -> Any:
    return client.push(network(width), name, example=torch.zeros(1, 4))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_report_and_a_recipe(client: Client, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pushed(client, "first")
    made = client.jobs.submit("prune", model="first@1", method="channel", amount=0.5, wait=True)
    page = tmp_path / "report.html"
    command("--url", client.url, "report", made.id, "--html", str(page))
    text = page.read_text("utf-8")
    assert text.count("<svg") >= 3  # channels, latency as a histogram and by batch
    assert "Latency of a run of 64 rows" in text
    assert "could not be drawn" not in text
    assert "first@2" in text
    assert "<script" not in text

    found = client.jobs.report(made.id)
    assert [(step["ref"], step["made_by"]["kind"]) for step in found["lineage"]] == [
        ("first@1", "import"),
        ("first@2", "prune"),
    ]
    assert found["lineage"][1]["changes"]["parameters"]["after"] < 59
    assert [spec["kind"] for spec in found["recipe"]["chain"]] == ["prune"]

    recipe = client.models.recipe("first@2")
    assert (recipe.root, recipe.made, [spec.kind for spec in recipe.chain]) == ("first@1", ["first@2"], ["prune"])
    pushed(client, "second")
    assert client.models.version("second@1")["architecture"] == recipe.architecture
    capfd.readouterr()
    command("--url", client.url, "replay", "first@2", "--on", "second")
    assert capfd.readouterr().out == "second@2\n"
    assert client.models.version("second@2")["parameters"] == client.models.version("first@2")["parameters"]

    pushed(client, "wide", 9)
    with pytest.raises(OtherNetwork, match="out_features: 8 there, 9 here"):
        client.replay("first@2", "wide@1")


def command(*words: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(words))
    assert not ended.value.code
