"""Searches over estimators of scikit-learn over HTTP: the winner is converted, deployed, and answers as it should."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from enginesmith import ApiError, Client
from running import Service, start_service
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GridSearchCV

SPACE = {"n_estimators": [5, 10], "max_depth": [4, None]}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, digits: dict[str, np.ndarray]) -> Iterator[Service]:
    service = start_service(tmp_path_factory.mktemp("estimators"), workers=2)
    with Client(service.url) as client:
        client.datasets.push("digits", split(digits))
    yield service
    service.stop()


@pytest.fixture
def client(own: Service) -> Iterator[Client]:
    with Client(own.url) as opened:
        yield opened


def split(digits: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """300 rows to train on, 100 each to validate and test."""
    x, y = digits["x"], digits["y"]
    cuts = {"": (0, 300), "_val": (300, 400), "_test": (400, 500)}
    return {f"{a}{name}": array[low:high] for name, (low, high) in cuts.items() for a, array in (("x", x), ("y", y))}


def test_a_grid_from_the_search_to_predictions(own: Service, client: Client, digits: dict[str, np.ndarray]) -> None:
    asked = {"estimator": "random_forest", "space": SPACE, "cv": 3, "sampler": "grid", "seed": 4, "model": "forest"}
    job = client.jobs.submit("search", dataset="digits", wait=True, **asked)
    rows = split(digits)
    x, y = rows["x"].reshape(300, -1), rows["y"]
    theirs = GridSearchCV(RandomForestClassifier(random_state=4), SPACE, cv=3).fit(x, y)
    report = job.result.report
    assert report["best_params"] == theirs.best_params_
    assert report["best_score"] == theirs.best_score_
    assert [row["params"] for row in report["cv_results"]] == theirs.cv_results_["params"]
    assert [row["mean_test_score"] for row in report["cv_results"]] == theirs.cv_results_["mean_test_score"].tolist()
    assert job.result.model == "forest@1"
    version = client.models.version("forest@1")
    assert (version["format"], version["metrics"]["quality"]["split"]) == ("onnx", "test")
    test = rows["x_test"]
    flat = test.reshape(len(test), -1)
    assert version["metrics"]["quality"]["value"] == theirs.score(flat, rows["y_test"])

    built = client.jobs.submit("convert", model="forest", dataset="digits", target="onnxruntime", wait=True)
    assert client.deploy("forest", built.result.model)["status"] == "ready"
    told = client.predict("forest", test[:50])["outputs"]
    np.testing.assert_array_equal(told["label"], theirs.predict(flat[:50]))
    np.testing.assert_allclose(told["probabilities"], theirs.predict_proba(flat[:50]), atol=1e-5)
    with httpx.Client(base_url=own.url) as http:
        answer = http.post("/predict/forest", json={"inputs": test[:1].tolist()}).json()
        assert answer["outputs"]["label"] == theirs.predict(flat[:1]).tolist()
        tensor = {"name": "x", "shape": [1, 1, 28, 28], "datatype": "FP32", "data": test[:1].ravel().tolist()}
        answer = http.post("/v2/models/forest/infer", json={"inputs": [tensor], "outputs": [{"name": "label"}]}).json()
        assert answer["outputs"][0]["data"] == theirs.predict(flat[:1]).tolist()

    with pytest.raises(ApiError, match="TreeEnsembleClassifier"):
        client.jobs.submit("convert", model="forest@1", dataset="digits", target="openvino", wait=True)


@pytest.mark.parametrize(
    "how",
    [
        {"sampler": "tpe", "space": {"C": {"low": 0.1, "high": 10.5, "log": True}, "kernel": ["rbf"]}, "trials": 5},
        {"sampler": "random", "space": {"C": {"low": 0.1, "high": 10.5}}, "trials": 9, "pruner": "halving", "cv": 2},
    ],
    ids=["tpe", "halving"],
)
def test_other_ways_to_search(client: Client, how: dict[str, object]) -> None:
    job = client.jobs.submit("search", dataset="digits", estimator="svc", wait=True, **how)
    assert client.models.version(job.result.model)["format"] == "onnx"
    found = job.result.report
    assert found["cv_results"][found["best_index"]]["mean_test_score"] == found["best_score"] > 0.3


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"space": {"max_dept": [3]}}, "max_dept"),
        ({"space": {"max_depth": [-1]}}, "max_depth"),
        ({"space": {"max_depth": [3]}, "params": {"bootstrap": False, "oob_score": True}}, "none of the 1 candidates"),
    ],
)
def test_what_scikit_learn_refuses_fails_the_search_with_its_words(
    client: Client, fields: dict[str, object], told: str
) -> None:
    with pytest.raises(ApiError, match=told):
        client.jobs.submit("search", dataset="digits", estimator="random_forest", sampler="grid", wait=True, **fields)
