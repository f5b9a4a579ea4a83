import gzip
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from asking import npz, problem, push_dataset, upload
from checkpoints_for_app import BARE_PICKLE, zipped
from fastapi import FastAPI
from PIL import Image
from pydantic import ValidationError

from app.api import datasets
from app.domain.records import Dataset
from app.domain.splits import told as splits_of
from app.errors import BadDataset, Problem
from app.intake.draft import Intake
from app.intake.manifest import DatasetManifest
from app.intake.read import read_dataset
from app.settings import Settings
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog

ARRAYS = {"name": "set", "kind": "arrays"}
TABLE = {"name": "set", "kind": "table", "target": "y"}
IMAGES = {"name": "set", "kind": "images"}
X = np.arange(60, dtype=np.float32).reshape(20, 3)
Y = np.arange(20) % 4


def loaded(artifacts: Artifacts, record: Dataset) -> dict[str, tuple[Any, Any]]:
    """x and y of each split, as a trainer sees them."""
    found = {}
    for name, split in record.splits.items():
        x, y = (np.load(io.BytesIO(artifacts.get_bytes(f"{record.folder}/{p}"))) for p in (split.x, split.y))
        if split.index:
            rows = np.load(io.BytesIO(artifacts.get_bytes(f"{record.folder}/{split.index}")))
            x, y = x[rows], y[rows]
        assert len(x) == len(y) == split.rows
        found[name] = (x, y)
    return found


def nothing_left(settings: Settings, artifacts: Artifacts) -> bool:
    return list(artifacts.keys("datasets")) == [] and list(settings.scratch.glob("*")) == []


async def test_arrays(client: httpx.AsyncClient, artifacts: Artifacts, catalog: Catalog, settings: Settings) -> None:
    record = await push_dataset(client, rows=1000)
    assert (record["ref"], record["kind"], record["x_shape"], record["x_dtype"]) == (
        "set@1",
        "arrays",
        [1, 28, 28],
        "float32",
    )
    assert (record["y_dtype"], record["classes"]) == ("int64", 10)
    assert record["rows"] == {"train": 640, "val": 160, "test": 200}
    splits = loaded(artifacts, catalog.dataset("set"))
    assert [np.bincount(y).tolist() for _, y in splits.values()] == [[64] * 10, [16] * 10, [20] * 10]
    random = np.random.default_rng(1)
    x = random.random((1000, 1, 28, 28), dtype=np.float32)
    together = np.concatenate([x for x, _ in splits.values()])
    assert np.array_equal(np.sort(together[:, 0, 0, 0]), np.sort(x[:, 0, 0, 0]))
    told = splits_of(catalog.dataset("set"))
    assert (told["rows"], told["seed"], set(told["index"])) == (record["rows"], 0, {"train", "val", "test"})
    for name, path in told["index"].items():
        answer = await client.get(path)
        assert answer.headers["etag"]
        rows = np.load(io.BytesIO(answer.content))
        assert np.array_equal(x[rows], splits[name][0])
    assert (await client.head(told["index"]["test"])).headers["content-length"] == str(len(answer.content))
    problem(await client.get("/v1/datasets/set/versions/1/files/../secret"), 404)
    problem(await client.get("/v1/datasets/set/versions/1/files/none.npy"), 404, "file_not_found")
    assert (await push_dataset(client, rows=1000))["ref"] == "set@2"
    first, second = (loaded(artifacts, d) for d in catalog.dataset_versions("set"))
    assert all(np.array_equal(first[s][0], second[s][0]) for s in first)
    assert list(settings.scratch.glob("*")) == []


async def test_given_splits_are_kept(client: httpx.AsyncClient, artifacts: Artifacts, catalog: Catalog) -> None:
    record = await push_dataset(client, x=X, y=Y, x_test=X[:4] + 100, y_test=Y[:4])
    assert record["rows"] == {"train": 16, "val": 4, "test": 4}
    splits = loaded(artifacts, catalog.dataset("set"))
    assert np.array_equal(splits["test"][0], X[:4] + 100)
    assert "test as uploaded" in record["split_note"]
    record = await push_dataset(client, "b", x=X, y=Y, x_val=X[:2], y_val=Y[:2], x_test=X[:4], y_test=Y[:4])
    assert record["rows"] == {"train": 20, "val": 2, "test": 4}
    record = await push_dataset(client, "c", x=X, y=Y, x_val=X[:2], y_val=Y[:2])
    assert record["rows"] == {"train": 16, "val": 2, "test": 4}


async def test_regression_and_dtypes(client: httpx.AsyncClient, artifacts: Artifacts, catalog: Catalog) -> None:
    record = await push_dataset(client, x=X.astype(np.float64), y=np.linspace(0, 1, 20))
    assert (record["x_dtype"], record["y_dtype"], record["classes"]) == ("float32", "float32", None)
    assert "float64" in record["split_note"]
    record = await push_dataset(client, x=X.astype(np.uint8), y=(Y > 1))
    assert (record["x_dtype"], record["classes"]) == ("uint8", 2)
    record = await push_dataset(client, x=X.astype(">i4"), y=Y.astype(np.uint8).reshape(-1, 1))
    assert (record["x_dtype"], record["classes"], record["y_shape"]) == ("int32", 4, [])
    x = loaded(artifacts, catalog.dataset("set"))["train"][0]
    assert set(x.ravel().tolist()) <= set(range(60))


async def test_fortran_order(client: httpx.AsyncClient, artifacts: Artifacts, catalog: Catalog) -> None:
    x = np.asfortranarray(np.arange(240, dtype=np.float32).reshape(20, 3, 4))
    await push_dataset(client, x=x, y=Y, x_val=x, y_val=Y, x_test=x, y_test=Y)
    assert np.array_equal(loaded(artifacts, catalog.dataset("set"))["train"][0], x)


async def test_shares_and_labels(client: httpx.AsyncClient) -> None:
    manifest = ARRAYS | {"splits": {"train": 0.5, "val": 0.25, "test": 0.25}, "labels": ["a", "b", "c", "d"]}
    answer = await client.post("/v1/datasets", **upload(npz(x=X, y=Y), manifest))
    assert (answer.status_code, answer.json()["rows"]) == (201, {"train": 10, "val": 5, "test": 5})
    assert (answer.json()["labels"], answer.json()["classes"]) == (["a", "b", "c", "d"], 4)
    assert answer.headers["location"] == "/v1/datasets/set/versions/1"


def with_object() -> bytes:
    held = io.BytesIO()
    np.save(held, np.array([Path("/tmp")], dtype=object), allow_pickle=True)
    return zipped({"x.npy": held.getvalue(), "y.npy": held.getvalue()})


def bad_header(shape: str) -> bytes:
    held = io.BytesIO()
    np.save(held, Y)
    npy = bytearray(held.getvalue())
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    npy[10:128] = header
    return zipped({"x.npy": bytes(npy), "y.npy": held.getvalue()})


def bomb() -> bytes:
    held = io.BytesIO()
    np.savez_compressed(held, x=np.zeros((20, 1 << 20), np.float32), y=Y)
    return held.getvalue()


NAN = X.copy()
NAN[7, 1] = np.nan
INF = X.astype(np.float64)
INF[19, 2] = 1e300


@pytest.mark.parametrize(
    ("content", "manifest", "status", "code", "words"),
    [
        (b"", ARRAYS, 422, "empty_file", "empty"),
        (b"hello", ARRAYS, 415, "not_npz", "npz"),
        (npz(x=X, y=Y)[:-200], ARRAYS, 422, "truncated", "cut short"),
        (npz(x=X), ARRAYS, 422, "missing_array", "no array y"),
        (npz(y=Y), ARRAYS, 422, "missing_array", "no array x"),
        (npz(x=X, y=Y, x_test=X), ARRAYS, 422, "missing_array", "y_test"),
        (npz(x=X, y=Y, z=Y), ARRAYS, 422, "unknown_array", "'z'"),
        (npz(x=NAN, y=Y), ARRAYS, 422, "not_finite", "nan in row 7 at [1]"),
        (npz(x=INF, y=Y), ARRAYS, 422, "not_finite", "inf in row 19"),
        (npz(x=X, y=NAN[:, 1]), ARRAYS, 422, "not_finite", "row 7"),
        (npz(x=X, y=Y[:19]), ARRAYS, 422, "rows_differ", "20 rows"),
        (npz(x=X, y=Y - 1), ARRAYS, 422, "labels_out_of_range", "-1 in row 0"),
        (npz(x=X, y=Y), ARRAYS | {"labels": ["a", "b"]}, 422, "labels_out_of_range", "2 in row 2"),
        (npz(x=X, y=Y), ARRAYS | {"classes": 3}, 422, "labels_out_of_range", "3 in row 3"),
        (npz(x=X, y=Y, x_test=X, y_test=Y + 1), ARRAYS | {"classes": 4}, 422, "labels_out_of_range", "test"),
        (npz(x=X, y=np.eye(4, dtype=int)[Y]), ARRAYS, 422, "bad_dataset", "one number a row"),
        (npz(x=X, y=Y.astype(str)), ARRAYS, 422, "bad_dataset", "dtype"),
        (npz(x=X.astype(complex), y=Y), ARRAYS, 422, "bad_dataset", "dtype"),
        (npz(x=X[:0], y=Y[:0]), ARRAYS, 422, "empty", "no row"),
        (npz(x=X[:, :0], y=Y), ARRAYS, 422, "empty", "empty shape"),
        (npz(x=X[:2], y=Y[:2]), ARRAYS, 422, "bad_dataset", "too few"),
        (npz(x=X[:, 0], y=Y), ARRAYS, 422, "bad_dataset", "shape [20]"),
        (npz(x=X, y=3), ARRAYS, 422, "bad_dataset", "single number"),
        (npz(x=X, y=Y, x_test=X[:, :2], y_test=Y), ARRAYS, 422, "bad_dataset", "rows of"),
        (with_object(), ARRAYS, 422, "pickle_refused", "pickle"),
        (bad_header("(10**18,)"), ARRAYS, 422, "bad_dataset", "x.npy"),
        (bad_header("(1000000000000,)"), ARRAYS, 422, "truncated", "4000000000000"),
        (bad_header("(-5,)"), ARRAYS, 422, "bad_dataset", "shape"),
        (zipped({"x.npy": BARE_PICKLE, "y.npy": BARE_PICKLE}), ARRAYS, 422, "bad_dataset", "no array"),
        (zipped({"../x.npy": b""}), ARRAYS, 422, "unsafe_archive", "leads out"),
        (bomb(), ARRAYS, 413, "archive_bomb", "times"),
        (b"a,b\n", IMAGES, 415, "not_zip", "zip"),
        (b"", TABLE, 422, "empty_file", "empty"),
        (b"\n\n", TABLE, 422, "empty", "empty"),
        (b"a,y\n", TABLE, 422, "empty", "no row"),
        (b"a,b\n1,2\n", TABLE, 422, "missing_column", "'y'"),
        (b"a,y\n1,2\n1\n", TABLE, 422, "bad_table", "columns"),
        (b"a,y\nred,2\n", TABLE, 422, "bad_columns", "'a' (string)"),
        (b"a,y\n1,2\n,3\n", TABLE, 422, "not_finite", "row 1"),
        (b"a,y\n1,2\n2,\n", TABLE, 422, "not_finite", "row 1"),
        (b"a,y\n1,2\nnan,3\n", TABLE, 422, "not_finite", "row 1"),
        (b"1,2\n3,4\n", TABLE, 422, "bad_columns", "first line"),
        (b"a,a,y\n1,2,3\n", TABLE, 422, "bad_columns", "twice"),
        (b"y\n1\n", TABLE, 422, "bad_columns", "beside"),
        (b"PAR1" + b"\0" * 100, TABLE, 422, "bad_table", "parquet"),
        (b"\xff\xfe\x00a,y\n", TABLE, 422, None, ""),
    ],
)
def test_bad_data_sets(tmp_path: Path, content: bytes, manifest: Any, status: int, code: str, words: str) -> None:
    with pytest.raises(Problem) as caught:
        read(tmp_path, content, manifest)
    body = caught.value.body()
    assert (body["status"], body["code"]) == (status, code or body["code"])
    assert words in json.dumps(body), body


def read(folder: Path, content: bytes, manifest: Any) -> dict[str, Any]:
    """What the child process does, in this one."""
    (folder / "upload").write_bytes(content)
    (folder / "data").mkdir()
    checked = DatasetManifest.model_validate(manifest)
    return read_dataset(Intake(folder / "upload", folder / "data", folder, checked, 32 << 30, 1000))


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ({"name": "a b", "kind": "arrays"}, "name"),
        ({"name": "a", "kind": "sounds"}, "kind"),
        ({"name": "a"}, "kind"),
        (ARRAYS | {"target": "y"}, "target"),
        (ARRAYS | {"preprocess": {}}, "preprocess"),
        (ARRAYS | {"splits": {"val": 0.6, "test": 0.5}}, "train"),
        ({"name": "a", "kind": "table"}, "target"),
    ],
)
async def test_bad_manifests(client: httpx.AsyncClient, manifest: Any, words: str) -> None:
    body = problem(await client.post("/v1/datasets", **upload(npz(x=X, y=Y), manifest)), 422, "invalid")
    assert words in json.dumps(body), body


@pytest.mark.parametrize(("content", "status"), [(b"", 422), (b"x", 415), (npz(x=NAN, y=Y), 422), (bomb(), 413)])
async def test_a_refused_data_set_leaves_nothing(
    client: httpx.AsyncClient, settings: Settings, artifacts: Artifacts, content: bytes, status: int
) -> None:
    problem(await client.post("/v1/datasets", **upload(content, ARRAYS)), status)
    assert nothing_left(settings, artifacts)


def csv(rows: int = 50, **columns: Any) -> bytes:
    names = ",".join(columns)
    lines = (",".join(str(c(i)) for c in columns.values()) for i in range(rows))
    return "\n".join([names, *lines]).encode()


@pytest.mark.parametrize("packed", [False, True])
async def test_csv(client: httpx.AsyncClient, artifacts: Artifacts, catalog: Catalog, packed: bool) -> None:
    text = csv(a=lambda i: i, b=lambda i: i / 3, c=lambda i: str(i % 2 == 0).lower(), y=lambda i: f"kind {i % 3}")
    answer = await client.post("/v1/datasets", **upload(gzip.compress(text) if packed else text, TABLE))
    assert answer.status_code == 201, answer.text
    record = answer.json()
    assert (record["columns"], record["x_shape"], record["labels"]) == (
        ["a", "b", "c"],
        [3],
        ["kind 0", "kind 1", "kind 2"],
    )
    x, y = loaded(artifacts, catalog.dataset("set"))["train"]
    assert np.array_equal(y, x[:, 0] % 3)
    assert np.array_equal(x[:, 2], x[:, 0] % 2 == 0)


async def test_csv_targets(client: httpx.AsyncClient) -> None:
    async def taken(text: bytes, **more: Any) -> dict[str, Any]:
        answer = await client.post("/v1/datasets", **upload(text, TABLE | more))
        assert answer.status_code == 201, answer.text
        found: dict[str, Any] = answer.json()
        return found

    whole = csv(a=lambda i: i, b=lambda i: "x", y=lambda i: i % 3)
    assert (await taken(whole, features=["a"]))["classes"] == 3
    assert (await taken(whole, features=["a"], task="regression"))["y_dtype"] == "float32"
    assert (await taken(csv(a=lambda i: i, y=lambda i: i / 7)))["y_dtype"] == "float32"
    assert (await taken(csv(a=lambda i: i, y=lambda i: float(i % 2)), task="classification"))["classes"] == 2
    record = await taken(csv(a=lambda i: i, y=lambda i: "no" if i % 2 else "yes"), labels=["yes", "no", "maybe"])
    assert (record["labels"], record["classes"]) == (["yes", "no", "maybe"], 3)
    strange = csv(a=lambda i: i, y=lambda i: "no" if i % 2 else "yes")
    answer = await client.post("/v1/datasets", **upload(strange, TABLE | {"labels": ["yes"]}))
    problem(answer, 422, "labels_out_of_range")


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_other_delimiters(tmp_path: Path, delimiter: str) -> None:
    text = csv(a=lambda i: i, b=lambda i: i, y=lambda i: i % 3).replace(b",", delimiter.encode())
    assert read(tmp_path, text, TABLE)["columns"] == ("a", "b")


async def test_integers_that_become_floats_late(client: httpx.AsyncClient) -> None:
    text = csv(rows=300_000, a=lambda i: i if i < 290_000 else i + 0.5, y=lambda i: i % 2)
    answer = await client.post("/v1/datasets", **upload(text, TABLE))
    assert answer.status_code == 201, answer.text


async def test_parquet(client: httpx.AsyncClient, artifacts: Artifacts, catalog: Catalog) -> None:
    held = io.BytesIO()
    table = pa.table({"a": list(range(40)), "y": pa.array(["b", "a"] * 20).dictionary_encode(), "f": [0.5] * 40})
    pyarrow.parquet.write_table(table, held)
    answer = await client.post("/v1/datasets", **upload(held.getvalue(), TABLE))
    assert answer.status_code == 201, answer.text
    x, y = loaded(artifacts, catalog.dataset("set"))["train"]
    assert (answer.json()["labels"], answer.json()["columns"]) == (["a", "b"], ["a", "f"])
    assert np.array_equal(y, 1 - x[:, 0] % 2)
    null = io.BytesIO()
    pyarrow.parquet.write_table(pa.table({"a": [1.0, None, 2.0], "y": [0, 1, 0]}), null)
    assert "row 1" in problem(await client.post("/v1/datasets", **upload(null.getvalue(), TABLE)), 422)["detail"]


def picture(colour: int, size: tuple[int, int] = (6, 4), kind: str = "PNG", mode: str = "RGB") -> bytes:
    held = io.BytesIO()
    Image.new(mode, size, colour if mode == "L" else (colour, 0, 255 - colour)).save(held, kind)
    return held.getvalue()


def pictures(prefix: str = "", classes: tuple[str, ...] = ("cat", "dog"), each: int = 10) -> dict[str, bytes]:
    return {f"{prefix}{c}/{i}.png": picture(i * 10 + 100 * k) for k, c in enumerate(classes) for i in range(each)}


async def test_images(client: httpx.AsyncClient, artifacts: Artifacts, catalog: Catalog) -> None:
    rubbish = {"__MACOSX/cat/._1.png": b"x", "cat/.DS_Store": b"x"}
    preprocess = {"resize": [8, 8], "mean": [0.5, 0.5, 0.5], "std": 0.5}
    answer = await client.post(
        "/v1/datasets", **upload(zipped(pictures() | rubbish), IMAGES | {"preprocess": preprocess})
    )
    assert answer.status_code == 201, answer.text
    record = answer.json()
    assert (record["labels"], record["x_shape"], record["x_dtype"]) == (["cat", "dog"], [3, 8, 8], "float32")
    assert sum(record["rows"].values()) == 20
    assert record["preprocess"]["resize"] == [8, 8]
    x, y = loaded(artifacts, catalog.dataset("set"))["train"]
    assert np.allclose(x[:, 1], -1)
    assert ((x[:, 0, 0, 0] > -0.25) == (y == 1)).all()


@pytest.mark.parametrize("prefix", ["", "flowers/"])
async def test_images_in_splits(client: httpx.AsyncClient, prefix: str) -> None:
    found = pictures(f"{prefix}train/", each=5) | pictures(f"{prefix}test/", each=2) | pictures(f"{prefix}val/", each=1)
    manifest = IMAGES | {"labels": ["dog", "cat"], "preprocess": {"channels": 1, "layout": "NHWC", "dtype": "uint8"}}
    answer = await client.post("/v1/datasets", **upload(zipped(found), manifest))
    assert answer.status_code == 201, answer.text
    record = answer.json()
    assert (record["rows"], record["x_shape"]) == ({"train": 10, "val": 2, "test": 4}, [4, 6, 1])
    assert (record["labels"], record["x_dtype"]) == (["dog", "cat"], "uint8")


@pytest.mark.parametrize(
    ("held", "manifest", "code", "words"),
    [
        (pictures() | {"cat/x.png": b"no image"}, {}, "bad_image", "cat/x.png"),
        (pictures() | {"cat/x.png": picture(1)[:45]}, {}, "bad_image", "cat/x.png"),
        (pictures() | {"cat/x.png": picture(1, (5, 5))}, {}, "sizes_differ", "resize"),
        (pictures() | {"readme.txt": b"hi"}, {}, "no_class", "readme.txt"),
        ({"1.png": picture(1)}, {}, "no_class", "1.png"),
        (pictures("test/"), {}, "missing_split", "train/"),
        (pictures("train/") | pictures("test/", ("cow",)), {}, "labels_out_of_range", "cow"),
        (pictures(), {"labels": ["cat"]}, "labels_out_of_range", "dog"),
        (pictures(), {"preprocess": {"crop": [100, 100]}}, "bad_image", "crop"),
        ({".DS_Store": b""}, {}, "empty", "no file"),
    ],
)
def test_bad_images(tmp_path: Path, held: Any, manifest: Any, code: str, words: str) -> None:
    with pytest.raises(Problem) as caught:
        read(tmp_path, zipped(held), IMAGES | manifest)
    assert caught.value.code == code
    assert words in json.dumps(caught.value.body())


def test_a_mean_for_other_channels() -> None:
    with pytest.raises(ValidationError, match="2 values for 3 channels"):
        DatasetManifest.model_validate(IMAGES | {"preprocess": {"mean": [1, 2]}})


async def test_an_image_of_many_pixels(client: httpx.AsyncClient) -> None:
    held = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(held, "PNG")
    body = problem(await client.post("/v1/datasets", **upload(zipped({"a/1.png": held.getvalue()}), IMAGES)), 422)
    assert "pixels" in body["detail"]


async def test_lists_and_deleting(client: httpx.AsyncClient, artifacts: Artifacts) -> None:
    for name in ("a", "a", "b"):
        await push_dataset(client, name, rows=10)
    listed = (await client.get("/v1/datasets?limit=1")).json()
    assert [d["ref"] for d in listed["items"]] == ["a@2"]
    assert listed["next_cursor"]
    one = (await client.get("/v1/datasets/a")).json()
    assert [d["ref"] for d in one["versions"]] == ["a@1", "a@2"]
    assert (await client.get("/v1/datasets/a/versions/1")).json()["ref"] == "a@1"
    assert (await client.delete("/v1/datasets/a/versions/1")).status_code == 204
    problem(await client.get("/v1/datasets/a/versions/1"), 404)
    assert (await client.delete("/v1/datasets/a")).status_code == 204
    for path in ("/v1/datasets/a", "/v1/datasets/a/versions/2"):
        problem(await client.get(path), 404)
        problem(await client.delete(path), 404)
    assert [k for k in artifacts.keys("datasets/a") if not k.endswith("tombstone.json")] == []


async def test_over_the_limit(
    app: FastAPI, client: httpx.AsyncClient, settings: Settings, artifacts: Artifacts
) -> None:
    app.state.settings = settings.model_copy(update={"max_upload_bytes": 500})
    problem(await client.post("/v1/datasets", **upload(npz(x=X, y=Y), ARRAYS)), 413, "too_large")
    app.state.settings = settings.model_copy(update={"max_unpacked_bytes": 300})
    problem(await client.post("/v1/datasets", **upload(npz(x=X, y=Y), ARRAYS)), 413, "archive_bomb")
    assert nothing_left(settings, artifacts)


async def test_damaged_bytes_inside(client: httpx.AsyncClient) -> None:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in (("x", np.random.default_rng(0).random((20, 300))), ("y", Y)):
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array)
    content = bytearray(held.getvalue())
    content[5000] ^= 0xFF
    problem(await client.post("/v1/datasets", **upload(bytes(content), ARRAYS)), 422)


async def test_a_reader_that_tells_too_much_is_ended(
    client: httpx.AsyncClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would wait for ever to be heard, and everybody else for its turn."""
    monkeypatch.setattr("app.intake.child._MAX_ANSWER", 1000)
    table = "x,y\n" + "".join(f"1,{n:0900}x\n" * 3 for n in range(4000))
    parts = {
        "manifest": (None, json.dumps({"name": "t", "kind": "table", "target": "y"}), "application/json"),
        "file": ("t.csv", table.encode(), "text/csv"),
    }
    refused = await client.post("/v1/datasets", files=parts, timeout=60)
    assert "too large" in problem(refused, 422)["detail"]
    assert list(settings.scratch.glob("*")) == []


async def test_what_a_reader_tells_names_no_other_place(
    settings: Settings, artifacts: Artifacts, catalog: Catalog, tmp_path: Path
) -> None:
    """It may have been taken over."""
    (tmp_path / "x.npy").write_bytes(b"x")
    honest = {
        "kind": "arrays", "x_shape": [1], "x_dtype": "float32", "y_dtype": "int64", "split_note": "",
        "splits": {"train": {"rows": 1, "x": "x.npy", "y": "x.npy"}},
    }  # fmt: skip
    forged = {"folder": "webhooks", "files": {"a.json": "0" * 64}, "name": "other", "version": 9, "bytes": 0}
    made = datasets._publish(artifacts, catalog, "d", honest | forged, tmp_path, "datasets/d/files/f")
    assert (made.ref, made.folder, set(made.files), made.bytes) == ("d@1", "datasets/d/files/f", {"x.npy"}, 1)
    elsewhere = {"splits": {"train": {"rows": 1, "x": "../../../webhooks/a.json", "y": "x.npy"}}}
    with pytest.raises(BadDataset, match="not there"):
        datasets._publish(artifacts, catalog, "d", honest | elsewhere, tmp_path, "datasets/d/files/g")
    assert list(artifacts.keys("datasets/d/files/g")) == []
