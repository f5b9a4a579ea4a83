"""What goes out of the store by itself, and what stays because somebody counts on it."""

from pathlib import Path

import pytest
from drafts import draft

from app.domain.records import Job, now
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog
from app.storage.registry import publish_version
from app.storage.sweeping import sweep

IN_USE, NOT = "a" * 64, "b" * 64


def test_the_sweeper_takes_only_what_nothing_names(artifacts: Artifacts, catalog: Catalog, tmp_path: Path) -> None:
    made = publish_version(artifacts, catalog, draft(artifacts, tmp_path / "in", "j1"))
    draft(artifacts, tmp_path / "in", "lost")
    artifacts.put_bytes(b"", "staging/u/net.pt")
    artifacts.put_bytes(b"", "checkpoints/gone/1-000001")
    assert sweep(artifacts, catalog, older_than_s=3600) == 0
    assert sweep(artifacts, catalog, older_than_s=-1) == 4
    assert set(artifacts.keys(made.folder)) == {f"{made.folder}/{f}" for f in made.files}
    assert set(artifacts.keys("models")) >= {"models/net/1/manifest.json"}


def test_a_file_that_is_older_than_its_job_stays(
    artifacts: Artifacts, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial's files are linked, not written anew: a job that begins while the sweeper looks may publish old ones."""
    asked = catalog.open_jobs
    made = draft(artifacts, tmp_path / "in", "new")

    def then_it_publishes() -> list[Job]:
        found = list(asked())
        publish_version(artifacts, catalog, made)
        return found

    monkeypatch.setattr(catalog, "open_jobs", then_it_publishes)
    assert sweep(artifacts, catalog, older_than_s=-1) == 0
    assert set(artifacts.keys(made.folder)) == {f"{made.folder}/{f}" for f in made.files}


@pytest.fixture
def searching(artifacts: Artifacts, catalog: Catalog) -> None:
    """A search with a trial that names one of two that are kept."""
    for key in (IN_USE, NOT):
        artifacts.put_bytes(b"1234", f"trials/{key}/j-1/weights")
        artifacts.put_bytes(b"{}", f"trials/{key}/candidate.json")
    catalog.add(Job(id="s", kind="search", spec={"kind": "search"}, created_at=now()))
    catalog.moved("s", was={"queued"}, to="running")
    spec = {"kind": "trial", "role": "chain", "measure": {"against": IN_USE}}
    trial = Job(id="s-0000", kind="trial", spec=spec, parent="s", created_at=now())
    assert catalog.trials.add(trial, 1)
    catalog.redis.set("es:study:s:log_number", 0)
    catalog.redis.set("es:study:gone:log_number", 0)


@pytest.mark.usefixtures("searching")
def test_what_trials_kept_goes_after_a_week_unless_an_open_search_names_it(
    artifacts: Artifacts, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sweep(artifacts, catalog, older_than_s=3600) == 0
    assert catalog.trials.studies() == ["s"]  # whose job is there
    monkeypatch.setattr("app.storage.sweeping.TRIALS_KEPT_S", -1.0)
    assert sweep(artifacts, catalog, older_than_s=3600) == 2
    assert {key.split("/")[1] for key in artifacts.keys("trials")} == {IN_USE}
    catalog.moved("s", was={"running"}, to="cancelled")
    assert sweep(artifacts, catalog, older_than_s=3600) == 2
    assert list(artifacts.keys("trials")) == []
    assert catalog.trials.studies() == []


@pytest.mark.usefixtures("searching")
def test_of_too_much_that_trials_kept_the_oldest_goes(
    artifacts: Artifacts, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifacts.put_bytes(b"1234", "trials/shared/graph.onnx")
    assert sweep(artifacts, catalog, 3600, trials_bytes=6) == 0  # within the hour
    monkeypatch.setattr("app.storage.sweeping.TRIALS_SAFE_S", -1.0)
    assert sweep(artifacts, catalog, 3600, trials_bytes=10) == 2
    assert {key.split("/")[1] for key in artifacts.keys("trials")} == {IN_USE, "shared"}
    assert sweep(artifacts, catalog, 3600, trials_bytes=10) == 0
    assert sweep(artifacts, catalog, 3600, trials_bytes=1) == 1
    assert {key.split("/")[1] for key in artifacts.keys("trials")} == {IN_USE}
