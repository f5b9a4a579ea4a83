"""Of two plans for one kind of GPU the first is kept."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from app.domain.plans import KeptPlan
from app.domain.records import now
from app.storage.artifacts import Artifacts
from app.storage.plans import files_of, publish_plan, read_plan, sweep_plans


def made(artifacts: Artifacts, job: str) -> KeptPlan:
    folder = files_of("key", job, 1)
    artifacts.put_bytes(job.encode(), f"{folder}/model.plan")
    return KeptPlan(
        key="key", source="graph", built_for={}, folder=folder, files={"model.plan": "x"}, bytes=2, job=job,
        created_at=now(),
    )  # fmt: skip


def test_of_many_at_once_one_is_kept(artifacts: Artifacts) -> None:
    plans = [made(artifacts, f"j{n}") for n in range(6)]
    with ThreadPoolExecutor(6) as pool:
        kept = list(pool.map(lambda plan: publish_plan(artifacts, plan), plans))
    assert kept == [kept[0]] * 6
    assert read_plan(artifacts, "key") == kept[0]
    assert sweep_plans(artifacts, ["graph"], set(), datetime.max.replace(tzinfo=UTC)) == 5
    assert list(artifacts.keys(kept[0].folder)) == [f"{kept[0].folder}/model.plan"]
    assert sweep_plans(artifacts, [], set(), datetime.max.replace(tzinfo=UTC)) == 2
    assert list(artifacts.keys("plans")) == []
