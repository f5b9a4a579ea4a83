"""Webhooks: who is called, how, how often, and who never."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import redis
from asking import problem
from enginesmith import verify_webhook
from receiving import Receiver, receiver

from app.api.webhook_schema import EXAMPLES, SHAPES, Wanted
from app.domain.records import Job, Result, now
from app.domain.webhooks import Webhook, make, pause_s, wait_s
from app.errors import Unprocessable
from app.main import create_app
from app.settings import Settings
from app.storage import webhook_scripts
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog
from app.storage.kept_webhooks import add_webhook, drop_webhook, turn_webhook_off
from app.storage.registry import reindex_if_lost
from app.webhooks import sending
from app.webhooks.addresses import Resolve, parse_allowed, parse_url, reachable
from app.webhooks.posting import _seconds, trusted
from app.webhooks.sending import Sender

SECRET = "a secret that nobody knows".replace(" ", "-")
HERE = parse_allowed("127.0.0.0/8")


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"webhooks_allow": "127.0.0.0/8"})


@pytest.fixture
def heard() -> Iterator[Receiver]:
    with receiver() as opened:
        yield opened


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "LOOK_S", 0.02)


async def until(true: Callable[[], Any]) -> None:
    """Waits for what must come; the bound says that it never will."""
    for _ in range(600):
        if true():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it never came")


@asynccontextmanager
async def sender(artifacts: Artifacts, catalog: Catalog, **others: Any) -> AsyncIterator[None]:
    """One that tries again at once."""
    others = {"allowed": HERE, "waits": (0.05,)} | others
    task = asyncio.create_task(Sender(artifacts, catalog, others.pop("allowed"), **others).run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def hooked(artifacts: Artifacts, catalog: Catalog, url: str, *events: Any) -> Webhook:
    hook = make(url, events or ("job.succeeded", "job.failed", "job.cancelled"), SECRET)
    add_webhook(artifacts, catalog, hook)
    return hook


def ended(catalog: Catalog, id: str = "j1", **changes: Any) -> Job:
    catalog.add(Job(id=id, kind="train", spec={"kind": "train", "epochs": 3}, model="net@1", created_at=now()))
    catalog.moved(id, was={"queued"}, to="running", started_at=now())
    result = Result(model="net@2", verdict="accepted", report={"long": "x" * 1000})
    return catalog.moved(id, was={"running"}, **({"to": "succeeded", "result": result} | changes))


async def test_what_a_receiver_gets(client: httpx.AsyncClient, catalog: Catalog, heard: Receiver) -> None:
    answer = await client.post("/v1/webhooks", json={"url": heard.url, "events": ["job.started", "job.succeeded"]})
    assert answer.status_code == 201, answer.text
    hook = answer.json()
    assert answer.headers["location"] == f"/v1/webhooks/{hook['id']}"
    assert answer.headers["cache-control"] == "no-store"
    ended(catalog)
    await until(lambda: len(heard.calls) == 2)
    assert {call.headers["Enginesmith-Event"] for call in heard.calls} == {"job.started", "job.succeeded"}
    call = next(call for call in heard.calls if call.headers["Enginesmith-Event"] == "job.succeeded")
    event = verify_webhook(call.body, call.headers["Enginesmith-Signature"], hook["secret"])
    assert event == call.event
    assert call.path == "/hook?of=mine"
    assert call.headers["Host"] == f"127.0.0.1:{heard.port}"
    assert call.headers["Content-Type"] == "application/json"
    assert call.headers["Enginesmith-Delivery"] == event["id"]
    assert set(event) == {"id", "event", "created_at", "job"}
    told = (await client.get("/v1/jobs/j1")).json()
    job = event["job"]
    assert job["links"].pop("self") == "/v1/jobs/j1"
    assert job["result"] == {"model": "net@2", "verdict": "accepted"}
    for name in set(job) - {"links", "result"}:
        assert job[name] == told[name], name
    await until(lambda: catalog.webhooks.standing(hook["id"]).delivered == 2)
    view = (await client.get(f"/v1/webhooks/{hook['id']}")).json()
    assert [d["outcome"] for d in view["deliveries"]] == ["delivered"] * 2
    assert view["deliveries"][0]["status_code"] == 204
    assert view["waiting"] == view["failures"] == 0


async def test_over_http(client: httpx.AsyncClient, settings: Settings, heard: Receiver) -> None:
    page = create_app(settings).openapi()

    async def fits(method: str, path: str, template: str, status: int, **asked: Any) -> Any:
        response = await client.request(method, path, **asked)
        assert response.status_code == status, response.text
        told = page["paths"][template][method.lower()]["responses"][str(status)]["content"]["application/json"]
        jsonschema.validate(response.json(), page | told["schema"])
        return response.json()

    one, all = "/v1/webhooks/{id}", "/v1/webhooks"
    body = {"url": heard.url, "secret": SECRET, "events": ["job.failed", "job.failed"]}
    hook = await fits("POST", all, all, 201, json=body)
    assert hook["secret"] == SECRET
    assert hook["events"] == ["job.failed"]
    other = await fits("POST", all, all, 201, json={"url": heard.url})
    assert other["secret"] != SECRET
    first = await fits("GET", f"{all}?limit=1", all, 200)
    rest = await fits("GET", f"{all}?cursor={first['next_cursor']}", all, 200)
    assert [h["id"] for h in (*first["items"], *rest["items"])] == sorted([hook["id"], other["id"]])
    assert "secret" not in str(first) + str(rest)
    at = f"{all}/{hook['id']}"
    assert SECRET not in str(await fits("GET", at, one, 200))
    sent = await fits("POST", f"{at}/ping", one + "/ping", 202)
    await until(lambda: heard.calls)
    assert heard.calls[0].event == {"id": sent["id"], "event": "ping", "created_at": sent["created_at"], "job": None}
    assert (await client.delete(at)).status_code == 204
    for answer in (await client.get(at), await client.delete(at), await client.post(f"{at}/ping")):
        problem(answer, 404, "webhook_not_found")
    problem(await client.get(f"{all}/nobody"), 422)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"url": "ftp://example.com/"}, "bad_url"),
        ({"url": "https://me:secret@example.com/"}, "bad_url"),
        ({"url": "https://example.com/#here"}, "bad_url"),
        ({"url": "https:///path"}, "bad_url"),
        ({"url": "https://example.com:99999/"}, "bad_url"),
        ({"url": "https://exa mple.com/"}, "bad_url"),
        ({"url": "https://bücher.example/"}, "bad_url"),
        ({"url": "http://[fe80::1%25eth0]/"}, "bad_url"),
        ({"url": "http://example.com\\@127.0.0.1/"}, "bad_url"),
        ({"url": "http://10.0.0.1/"}, "refused_address"),
        ({"url": "http://no-such-host.invalid/"}, "unknown_host"),
        ({"url": "https://example.com/", "events": []}, "invalid"),
        ({"url": "https://example.com/", "events": ["job.exploded"]}, "invalid"),
        ({"url": "https://example.com/", "secret": "short"}, "invalid"),
        ({"url": "https://example.com/", "more": 1}, "invalid"),
        ({}, "invalid"),
    ],
)
async def test_what_is_refused(client: httpx.AsyncClient, body: dict[str, Any], code: str) -> None:
    problem(await client.post("/v1/webhooks", json=body), 422, code)
    assert (await client.get("/v1/webhooks")).json()["items"] == []


async def test_only_admins_see_them(settings: Settings) -> None:
    made = create_app(settings.model_copy(update={"api_keys": "W=write+predict,A=admin"}))
    transport = httpx.ASGITransport(made)
    async with (
        made.router.lifespan_context(made),
        httpx.AsyncClient(transport=transport, base_url="http://x") as client,
    ):
        for method, path in (("GET", ""), ("POST", ""), ("DELETE", "/1"), ("POST", "/1/ping"), ("GET", "/1")):
            answer = await client.request(method, f"/v1/webhooks{path}", headers={"Authorization": "Bearer W"})
            assert "'admin'" in problem(answer, 403)["detail"]
        assert (await client.get("/v1/webhooks", headers={"Authorization": "Bearer A"})).status_code == 200


def test_examples_fit() -> None:
    assert all(Wanted.model_validate(body) for body in EXAMPLES.values())
    for schema, example in SHAPES.values():
        jsonschema.validate(example, schema)


async def test_tried_again_until_it_succeeds(artifacts: Artifacts, catalog: Catalog, heard: Receiver) -> None:
    elsewhere = {"Location": heard.url.replace("/hook", "/elsewhere")}
    heard.answers = [(500, {}), (302, elsewhere), (429, {"Retry-After": "0"})]
    hook = hooked(artifacts, catalog, heard.url)
    job = ended(catalog)
    async with sender(artifacts, catalog):
        await until(lambda: catalog.webhooks.standing(hook.id).delivered)
    assert len(heard.calls) == 4
    assert {call.path for call in heard.calls} == {"/hook?of=mine"}
    assert len({call.body for call in heard.calls}) == 1  # the same event, however often
    for call in heard.calls:
        verify_webhook(call.body, call.headers["Enginesmith-Signature"], SECRET)
    ((delivery, due),) = catalog.webhooks.deliveries(hook.id)
    assert (delivery.attempts, delivery.status_code, delivery.job, due) == (4, 204, job.id, None)
    assert catalog.webhooks.standing(hook.id).failures == 0


async def test_a_dead_one_wedges_nothing(artifacts: Artifacts, catalog: Catalog, heard: Receiver) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, receiver() as slow:  # one accepts, and never says a word
        slow.held.clear()
        dead = [hooked(artifacts, catalog, f"http://127.0.0.1:{silent.getsockname()[1]}/{n}") for n in range(12)]
        dead += [hooked(artifacts, catalog, f"{slow.url}&n={n}") for n in range(12)]
        for n in range(3):
            ended(catalog, f"before{n}")
        live = hooked(artifacts, catalog, heard.url)
        async with sender(artifacts, catalog):
            # All have failed before: what is doubtful never takes all the room.
            for hook in dead:
                catalog.redis.hset(f"es:webhook:{hook.id}:state", "failures", 3)
            ended(catalog)
            ended(catalog, "j2", to="failed")
            await until(lambda: catalog.webhooks.standing(live.id).delivered == 2)
            # No attempt at a dead one has ended by then: nobody has waited for that.
            assert {catalog.webhooks.standing(hook.id)[:2] for hook in dead} == {(5, 3)}


async def test_two_senders_send_once(artifacts: Artifacts, catalog: Catalog, heard: Receiver) -> None:
    hook = hooked(artifacts, catalog, heard.url)
    for n in range(20):
        ended(catalog, f"j{n}")
    async with sender(artifacts, catalog), sender(artifacts, catalog):
        await until(lambda: catalog.webhooks.standing(hook.id).delivered == 20)
    assert len({call.event["id"] for call in heard.calls}) == len(heard.calls) == 20


async def test_what_a_dead_process_was_sending_is_sent_by_another(
    artifacts: Artifacts, catalog: Catalog, heard: Receiver
) -> None:
    hook = hooked(artifacts, catalog, heard.url)
    ended(catalog)
    assert catalog.webhooks.claim(doubtful=True, lease_s=0.2) is not None
    assert catalog.webhooks.claim(doubtful=True) is None  # while the lease lasts
    async with sender(artifacts, catalog):
        await until(lambda: catalog.webhooks.standing(hook.id).delivered)


async def test_gone_is_gone(artifacts: Artifacts, catalog: Catalog, heard: Receiver) -> None:
    heard.answers = [(410, {})]
    hook = hooked(artifacts, catalog, heard.url)
    ended(catalog)
    async with sender(artifacts, catalog):
        await until(lambda: b'"active": false' in artifacts.get_bytes(f"webhooks/{hook.id}.json"))
        ended(catalog, "j2")
        assert catalog.webhooks.standing(hook.id).waiting == 0
    assert "410" in (catalog.webhooks.get(hook.id).why_off or "")
    assert not catalog.webhooks.get(hook.id).active
    with pytest.raises(Exception, match="is off"):
        catalog.webhooks.ping(hook.id)
    drop_webhook(artifacts, catalog, hook.id)
    turn_webhook_off(artifacts, catalog, hook, "too late")
    assert not list(artifacts.keys("webhooks"))


async def test_given_up_after_a_day(artifacts: Artifacts, catalog: Catalog, heard: Receiver) -> None:
    heard.answers = [(500, {})]
    hook = hooked(artifacts, catalog, heard.url)
    ended(catalog)
    async with sender(artifacts, catalog, waits=(25 * 3600.0,)):
        await until(lambda: catalog.webhooks.standing(hook.id).failed)
    ((delivery, _),) = catalog.webhooks.deliveries(hook.id)
    assert (delivery.outcome, delivery.error) == ("failed", "http_500")


def test_how_long_it_waits() -> None:
    tried = [wait_s(attempts, None, 0.5) for attempts in range(1, 11)]
    assert tried == [5, 30, 120, 600, 3600, 7200, 14400, 21600, 21600, 21600]
    assert (wait_s(1, None, 0.0), wait_s(1, None, 1.0)) == (4, 6)
    assert [wait_s(1, asked, 0.5) for asked in (0.0, 60.0, 1e9)] == [5, 60, 3600]
    assert [pause_s(failures, None) for failures in (1, 2, 3, 50)] == [5, 30, 60, 60]
    assert _seconds(None) is _seconds(b"soon") is _seconds(b"-5") is None
    assert _seconds(b" 120 ") == 120
    assert _seconds(b"Wed, 21 Oct 2015 07:28:00 GMT") == 0


def test_what_waits_is_bounded(artifacts: Artifacts, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    few = webhook_scripts.TELL_ONE.replace(str(webhook_scripts.MOST_WAITING), "3")
    hook = hooked(artifacts, catalog, "https://example.com/")
    monkeypatch.setattr(catalog.webhooks, "_tell_one", catalog.redis.register_script(few))
    pings = [catalog.webhooks.ping(hook.id).id for _ in range(5)]
    assert catalog.webhooks.standing(hook.id)[:5] == (3, 0, 0, 0, 2)
    assert {delivery.id for delivery, _ in catalog.webhooks.deliveries(hook.id)} <= set(pings)
    drop_webhook(artifacts, catalog, hook.id)
    assert not catalog.redis.keys("es:webhook*")


async def test_an_answer_without_end_is_not_read(artifacts: Artifacts, catalog: Catalog, heard: Receiver) -> None:
    heard.endless = True
    hook = hooked(artifacts, catalog, heard.url)
    ended(catalog)
    async with sender(artifacts, catalog):
        await until(lambda: catalog.webhooks.standing(hook.id).delivered or catalog.webhooks.standing(hook.id).failures)
    assert catalog.webhooks.standing(hook.id).delivered == 1
    await until(lambda: not heard.endless)


def test_trials_are_not_told_of(artifacts: Artifacts, catalog: Catalog) -> None:
    hook = hooked(artifacts, catalog, "https://example.com/", "job.started", "job.failed")
    catalog.add(Job(id="t", kind="trial", spec={"kind": "trial"}, parent="s", created_at=now()))
    catalog.moved("t", was={"queued"}, to="running")
    catalog.moved("t", was={"running"}, to="failed")
    assert catalog.webhooks.standing(hook.id).waiting == 0
    ended(catalog, to="cancelled")  # it wants no such event; it did want the start
    assert [d.event for d, _ in catalog.webhooks.deliveries(hook.id)] == ["job.started"]


def test_a_redis_that_is_emptied_learns_them_again(settings: Settings, artifacts: Artifacts, catalog: Catalog) -> None:
    kept = hooked(artifacts, catalog, "https://example.com/a")
    gone = hooked(artifacts, catalog, "https://example.com/b")
    drop_webhook(artifacts, catalog, gone.id)
    artifacts.put_bytes(b"{", "webhooks/damaged.json")
    with redis.Redis.from_url(str(settings.redis_url)) as server:
        server.flushall()
    found = reindex_if_lost(artifacts, catalog)
    assert found is not None
    assert found["webhooks"] == 1
    assert catalog.webhooks.all() == [kept]
    ended(catalog)
    assert catalog.webhooks.standing(kept.id).waiting == 1


def test_there_may_be_so_many(artifacts: Artifacts, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.storage.webhooks.MOST", 1)
    hooked(artifacts, catalog, "https://example.com/a")
    with pytest.raises(Exception, match="webhooks already"):
        hooked(artifacts, catalog, "https://example.com/b")
    assert len(list(artifacts.keys("webhooks"))) == 1


# Whom it may reach ------------------------------------------------------------------------------------------------

PUBLIC = ["8.8.8.8", "1.1.1.1", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
REFUSED = [
    "127.0.0.1", "127.9.9.9", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1",
    "169.254.169.254", "100.64.0.1", "192.0.0.8", "192.0.2.1", "198.18.0.1", "192.88.99.1", "224.0.0.1", "239.1.1.1",
    "240.0.0.1", "255.255.255.255", "::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "fe80::1",
    "fec0::1", "fc00::1", "fd12:3456::1", "ff02::1", "ff0e::1", "2001:db8::1", "3fff::1", "5f00::1", "2001::1",
    "2002:7f00:1::", "2002:a00:1::1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::808:808",
    "2606:4700::5efe:a00:1", "100::1",
]  # fmt: skip


def to(*addresses: str) -> Resolve:
    async def resolve(host: str, port: int) -> list[str]:
        return list(addresses)

    return resolve


@pytest.mark.parametrize("address", REFUSED)
async def test_who_is_never_called(address: str) -> None:
    place = parse_url("https://hooks.example/x")
    with pytest.raises(Unprocessable) as refused:
        await reachable(place, parse_allowed(None), to(address))
    assert refused.value.code == "refused_address"
    plain = address.removeprefix("::ffff:")
    assert await reachable(place, parse_allowed(f"{plain}, other.example"), to(address)) == [plain]
    assert await reachable(place, parse_allowed("Hooks.Example."), to(address)) == [plain]


@pytest.mark.parametrize("address", PUBLIC)
async def test_who_may_be_called(address: str) -> None:
    found = await reachable(parse_url("https://x.example/"), parse_allowed(None), to("10.0.0.1", address))
    assert found == [address.removeprefix("::ffff:")]


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "127.1", "0177.0.0.1", "localhost", "[::1]", "127.0.0.1."])
async def test_other_ways_to_write_loopback(client: httpx.AsyncClient, settings: Settings, host: str) -> None:
    client._transport.app.state.settings = settings.model_copy(update={"webhooks_allow": None})  # type: ignore[attr-defined]
    answer = await client.post("/v1/webhooks", json={"url": f"http://{host}:8000/v1/models"})
    problem(answer, 422, "refused_address")


@pytest.mark.parametrize("text", ["10.0.0.0/33", "a b", "https://x.example", "10.0.0.300", "*"])
def test_what_cannot_be_allowed(settings: Settings, text: str) -> None:
    with pytest.raises(Unprocessable, match="ENGINESMITH_WEBHOOKS_ALLOW"):
        create_app(settings.model_copy(update={"webhooks_allow": f"10.0.0.0/8,{text}"}))


async def test_a_name_that_moves_inside_later(artifacts: Artifacts, catalog: Catalog, heard: Receiver) -> None:
    """DNS rebinding: it was public when the webhook was made."""
    hook = hooked(artifacts, catalog, heard.url.replace("127.0.0.1", "rebinding.example"))
    ended(catalog)
    async with sender(artifacts, catalog, allowed=parse_allowed(None), resolve=to("127.0.0.1")):
        await until(lambda: catalog.webhooks.standing(hook.id).failures)
    ((delivery, due),) = catalog.webhooks.deliveries(hook.id)
    assert delivery.error == "refused_address"
    assert due is not None
    assert heard.calls == []


async def test_the_address_that_was_checked_is_the_one_that_is_called(
    artifacts: Artifacts, catalog: Catalog, heard: Receiver
) -> None:
    """Nobody asks the name server a second time; the name is said to the receiver alone."""
    hook = hooked(artifacts, catalog, heard.url.replace("127.0.0.1", "hooks.invalid"))
    ended(catalog)
    # The first of two addresses is dead.
    async with sender(artifacts, catalog, resolve=to("127.0.0.99", "127.0.0.1")):
        await until(lambda: heard.calls)
        await until(lambda: catalog.webhooks.standing(hook.id).delivered)
    assert heard.calls[0].headers["Host"] == f"hooks.invalid:{heard.port}"


async def test_certificates_are_checked_against_the_name(
    artifacts: Artifacts, catalog: Catalog, tmp_path: Path
) -> None:
    file = certificate(tmp_path / "pair.pem", "hooks.example")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file)
    knows = ssl.create_default_context(cafile=str(file))
    with receiver(server) as heard:
        right, wrong = (
            hooked(artifacts, catalog, f"https://{host}.example:{heard.port}/") for host in ("hooks", "other")
        )
        ended(catalog)
        async with sender(artifacts, catalog, resolve=to("127.0.0.1"), tls=lambda: knows):
            await until(lambda: catalog.webhooks.standing(right.id).delivered)
            await until(lambda: catalog.webhooks.standing(wrong.id).failures)
        unknown = hooked(artifacts, catalog, f"https://hooks.example:{heard.port}/")
        catalog.webhooks.ping(unknown.id)
        async with sender(artifacts, catalog, resolve=to("127.0.0.1"), tls=trusted):
            await until(lambda: catalog.webhooks.standing(unknown.id).failures)
        assert len(heard.calls) == 1
    for hook in (wrong, unknown):
        assert catalog.webhooks.deliveries(hook.id)[0][0].error == "tls_failed"


def certificate(path: Path, name: str) -> Path:
    """One that signs itself, with its key."""
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    at = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - timedelta(days=1))
        .not_valid_after(at + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(plain + made.public_bytes(pem))
    return path
