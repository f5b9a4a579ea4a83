"""Keys that are made and revoked while the service runs: who is let in, when, and how much of it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from pathlib import Path

import httpx
import pytest
import redis
from asking import problem
from checkpoints_for_app import safetensors
from keyed import bearer, becomes, issue, replica

from app.__main__ import main
from app.api.key_text import guessable
from app.api.keyring import Keyring, _Bucket
from app.domain.deployments import Deployment
from app.domain.records import now
from app.errors import Conflict, Unavailable, Unprocessable
from app.settings import Settings
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog
from app.storage.keys import check_exposure, put_key, revoke_key, tell_of_change


async def test_made_and_revoked_while_two_replicas_run(settings: Settings) -> None:
    async with replica(settings) as one, replica(settings) as two:
        assert (await one.get("/v1/models")).status_code == 200  # no key was ever made
        key, token = issue(settings)
        for client in (one, two):
            problem(await becomes(client, 401), 401)
            await becomes(client, 200, bearer(token))
        assert key.id is not None
        revoke_key(Artifacts(settings.artifacts_url), key.id)
        tell_of_change(str(settings.redis_url))
        for client in (one, two):
            answer = await becomes(client, 401, bearer(token))
            assert problem(answer, 401)["code"] == "unknown_key"
            assert token not in answer.text
            problem(await client.get("/v1/models"), 401)  # whoever had a key wants no open service


async def test_a_redis_that_is_lost_lets_nobody_in_and_shuts_nobody_out(settings: Settings) -> None:
    _, token = issue(settings)
    async with replica(settings) as client:
        with redis.Redis.from_url(str(settings.redis_url)) as server:
            server.flushall()
        await asyncio.sleep(1)
        problem(await client.get("/v1/models"), 401)
        assert (await client.get("/v1/models", headers=bearer(token))).status_code == 200


async def test_a_key_that_is_damaged_opens_nothing_and_keeps_no_other_out(settings: Settings) -> None:
    key, lost = issue(settings)
    (settings.data / "store" / "keys" / f"{key.id}.json").write_text("{")
    async with replica(settings) as client:
        problem(await client.get("/v1/models"), 401)
        problem(await client.get("/v1/models", headers=bearer(lost)), 401)
        _, token = issue(settings)
        await becomes(client, 200, bearer(token))


async def test_a_store_that_cannot_be_read_lets_nobody_in(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(artifacts: Artifacts) -> None:
        raise Unavailable("the artifact store failed")

    with monkeypatch.context() as broken:
        broken.setattr("app.api.keyring.read_keys", away)
        async with replica(settings) as client:
            problem(await client.get("/v1/models"), 401)
            broken.undo()
            await becomes(client, 200)  # there it is, and it has no keys


def test_nothing_of_a_key_is_kept(settings: Settings) -> None:
    key, token = issue(settings)
    (kept,) = (settings.data / "store" / "keys").iterdir()
    assert token.rpartition("_")[2] not in kept.read_text()
    assert hashlib.sha256(token.encode()).hexdigest() == json.loads(kept.read_text())["digest"]
    assert key.owner in token
    with pytest.raises(FileExistsError):
        put_key(Artifacts(settings.artifacts_url), key)


async def test_scopes_are_named(settings: Settings) -> None:
    _, token = issue(settings, scopes=("predict",))
    async with replica(settings) as client:
        refused = problem(await client.post("/v1/jobs", headers=bearer(token), json={}), 403)
        assert refused["detail"] == "this key lacks the scope 'write'; it has predict"
        assert "'write'" in problem(await client.post("/v1/jobs", json={}), 401)["detail"]


async def test_requests_a_second(settings: Settings) -> None:
    _, token = issue(settings, requests_per_second=0.01)
    _, other = issue(settings)
    async with replica(settings) as client:
        assert (await client.get("/v1/models", headers=bearer(token))).status_code == 200
        answer = await client.get("/v1/models", headers=bearer(token))
        assert problem(answer, 429)["code"] == "rate_limited"
        assert int(answer.headers["retry-after"]) > 1
        answer = await client.post("/predict/none", headers=bearer(token), json={"inputs": [1]})
        assert problem(answer, 429)["code"] == "rate_limited"
        assert (await client.get("/v1/models", headers=bearer(other))).status_code == 200
        assert (await client.get("/healthz/live")).status_code == 200


def test_a_bucket_gives_what_its_rate_says() -> None:
    bucket = _Bucket()
    assert [bucket.take(100.0, 4) for _ in range(4)] == [0, 0, 0, 0]
    assert bucket.take(100.0, 4) == pytest.approx(0.25)
    assert bucket.take(100.25, 4) == 0
    assert bucket.take(100.25, 4) > 0
    assert sum(bucket.take(100.25 + n / 100, 4) == 0 for n in range(1, 1001)) == 40
    slow = _Bucket()
    assert slow.take(0.0, 0.5) == 0  # less than one a second: one at first
    assert slow.take(1.0, 0.5) == pytest.approx(1)


async def test_jobs_at_once(settings: Settings) -> None:
    key, token = issue(settings, jobs=1)
    _, other = issue(settings)
    async with replica(settings) as client:

        async def upload(token: str) -> httpx.Response:
            file = {"file": ("x.safetensors", safetensors())}
            return await client.post(
                "/v1/models", headers=bearer(token), files=file, data={"manifest": '{"name": "m"}'}
            )

        at_once = await asyncio.gather(*(upload(token) for _ in range(8)), upload(other))
        (first,) = (answer for answer in at_once[:8] if answer.status_code == 202)
        refused = next(answer for answer in at_once if answer.status_code != 202)
        assert problem(refused, 429)["code"] == "too_many_jobs"
        assert "retry-after" in refused.headers
        assert at_once[8].status_code == 202
        at = f"/v1/jobs/{first.json()['id']}"
        cancelled = await client.post(f"{at}/cancel", headers=bearer(token))
        assert cancelled.status_code == 200
        assert (await upload(token)).status_code == 202
        assert key.id in {job["key"] for job in (await client.get("/v1/jobs", headers=bearer(token))).json()["items"]}
        assert not list((settings.data / "store" / "staging").glob("*/x.safetensors"))[
            3:
        ]  # of those refused nothing is left


async def test_what_somebody_follows_ends_with_the_key(settings: Settings) -> None:
    key, token = issue(settings)
    _, admin = issue(settings)
    async with replica(settings) as client:
        await becomes(client, 200, bearer(token))
        file, manifest = {"file": ("x.safetensors", safetensors())}, {"manifest": '{"name": "m"}'}
        job = (await client.post("/v1/models", headers=bearer(admin), files=file, data=manifest)).json()
        following = asyncio.create_task(client.get(job["links"]["events"], headers=bearer(token), timeout=60))
        await asyncio.sleep(0.5)
        assert not following.done()
        revoke_key(Artifacts(settings.artifacts_url), str(key.id))
        tell_of_change(str(settings.redis_url))
        assert "queued" in (await asyncio.wait_for(following, 5)).text


async def test_strangers_hear_nothing_of_what_is_served(settings: Settings) -> None:
    _, token = issue(settings)
    async with replica(settings) as client:
        await becomes(client, 200, bearer(token))
        wish = {"model": "secret@1"}
        catalog = Catalog.open(settings, str(settings.redis_url))
        catalog.put_deployment(
            Deployment(name="hidden", created_at=now(), updated_at=now(), **wish), was_generation=None
        )
        for path in ("/healthz/ready", "/healthz/serving"):
            told = await client.get(path)
            assert "hidden" not in told.text
            assert "secret" not in told.text
        assert "hidden" in (await client.get("/healthz/ready", headers=bearer(token))).text


async def test_whoever_changes_something_is_written_down(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    key, token = issue(settings)
    async with replica(settings) as client:
        with caplog.at_level(logging.INFO, "enginesmith.audit"):
            await client.get("/v1/models", headers=bearer(token))
            await client.delete("/v1/deployments/none", headers=bearer(token))
            await client.delete("/v1/deployments/none", headers=bearer("guessed"))
    told = [vars(record) for record in caplog.records if record.name == "enginesmith.audit"]
    assert [(line["method"], line["path"], line["status"], line["key"]) for line in told] == [
        ("DELETE", "/v1/deployments/none", 404, key.id),
        ("DELETE", "/v1/deployments/none", 401, None),
    ]
    assert told[0]["key_name"] == "somebody"
    assert told[0]["client"] == "10.0.0.7"
    assert token not in str(told)


async def test_keys_made_and_revoked_are_written_down(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    issue(settings)  # one that was there before is no news
    async with replica(settings) as client:
        with caplog.at_level(logging.INFO, "enginesmith.audit"):
            new, token = issue(settings, scopes=("predict",))
            await becomes(client, 200, bearer(token))
            revoke_key(Artifacts(settings.artifacts_url), str(new.id))
            tell_of_change(str(settings.redis_url))
            await becomes(client, 401, bearer(token))
    told = [vars(record) for record in caplog.records if record.name == "enginesmith.audit"]
    assert [record["message"] for record in told] == [f"key {new.id} was made", f"key {new.id} was revoked"]
    assert told[0]["key_name"] == "somebody"
    assert told[0]["scopes"] == ["predict"]
    assert token not in str(told)


async def test_a_file_of_hashed_keys_is_read_again(settings: Settings, tmp_path: Path) -> None:
    digest = hashlib.sha256(b"first").hexdigest()
    path = tmp_path / "keys"
    path.write_text(f"# of the cluster\n\nsha256:{digest}=predict  # the shop\n")
    filed = settings.model_copy(update={"api_keys_file": path, "host": "0.0.0.0"})
    async with replica(filed) as client:
        problem(await client.get("/v1/models"), 401)
        await becomes(client, 200, bearer("first"))
        problem(await client.delete("/v1/models/none", headers=bearer("first")), 403)
        path.write_text(f"sha256:{hashlib.sha256(b'second').hexdigest()}\n")
        await becomes(client, 200, bearer("second"))
        await becomes(client, 401, bearer("first"))
        made, token = issue(settings)
        await becomes(client, 200, bearer(token))
        for mistake in (b"second\n", b"\xff\xfe\x00"):  # not hashed; no text
            path.write_bytes(mistake)
            await asyncio.sleep(1)
            await becomes(client, 200, bearer("second"))  # a mistake shuts nobody out
        revoke_key(Artifacts(settings.artifacts_url), str(made.id))
        tell_of_change(str(settings.redis_url))
        await becomes(client, 401, bearer(token))  # nor does it keep anybody in


def test_files_that_are_refused(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    filed = settings.model_copy(update={"api_keys_file": path})
    with pytest.raises(Unprocessable, match="cannot be read"):
        Keyring(filed)
    path.write_text("sha256:" + "0" * 64 + "\nsecret=predict\n")
    with pytest.raises(Unprocessable, match="line 2 of ENGINESMITH_API_KEYS_FILE is no hashed key") as refused:
        Keyring(filed)
    assert "secret" not in str(refused.value)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Unprocessable, match="no text"):
        Keyring(filed)


def test_a_key_is_ensured_once(settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ENGINESMITH_REDIS_URL", str(settings.redis_url))
    file, data = tmp_path / "key", ["--data", str(settings.data)]

    def ensure(*more: str) -> str:
        assert main(["keys", "ensure", str(file), "--name", "metrics", *data, *more]) == 0
        return file.read_text()

    first = ensure()
    assert ensure() == first
    assert file.stat().st_mode & 0o777 == 0o600
    assert main(["keys", "revoke", "metrics", *data]) == 0
    second = ensure("--for-others")
    assert second != first
    assert file.stat().st_mode & 0o777 == 0o644
    file.write_text("es_nothing")
    assert ensure() not in ("es_nothing", first, second)


def test_short_keys_are_counted() -> None:
    long = "0123456789abcdef"
    assert guessable(f"{long}, {long}=predict, sha256:{'0' * 64}") == guessable(None) == 0
    assert guessable(f"secret,{long},x=predict") == 2


def test_a_key_that_was_made_opens_other_addresses(settings: Settings) -> None:
    exposed = settings.model_copy(update={"host": "0.0.0.0"})
    with pytest.raises(Conflict, match="no API key"):
        check_exposure(exposed)
    issue(settings)
    check_exposure(exposed)


def test_the_command(settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ENGINESMITH_REDIS_URL", str(settings.redis_url))

    def run(*words: str) -> tuple[int, str, str]:
        code = main(["keys", *(words if "--data" in words else (*words, "--data", str(settings.data)))])
        told = capsys.readouterr()
        return code, told.out, told.err

    code, token, said = run("create", "--name", "shop", "--scopes", "write+predict", "--jobs", "2")
    assert (code, token[:3]) == (0, "es_")
    assert "predict, write" in said
    (listed,) = json.loads(run("list", "--json")[1])
    assert (listed["name"], listed["scopes"], listed["limits"]["jobs"]) == ("shop", ["predict", "write"], 2)
    assert token.strip() not in run("list")[1]
    elsewhere = str(settings.data / "elsewhere")
    assert "no store" in run("list", "--data", elsewhere)[2]
    assert "no service has run yet" in run("create", "--data", elsewhere)[2]
    assert run("revoke", "nobody")[0] == 1
    assert run("revoke", "shop")[0] == run("revoke", listed["id"])[0] == 0
    assert json.loads(run("list", "--json")[1])[0]["revoked_at"] is not None
    for wrong in (("--scopes", "read"), ("--jobs", "-1"), ("--requests-per-second", "nan")):
        code, told, said = run("create", *wrong)
        assert (code, told) == (1, "")
        assert said.startswith("error: ")
