"""Before it is queued: search. Its space, its chain, its objectives, and whether they go together."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from app.api.checking.targets import check_target
from app.domain import searching
from app.domain.estimator_params import PARAMETERS
from app.domain.estimators import check_names, class_path, named
from app.domain.records import Dataset, Version
from app.domain.searching import Objective, Place
from app.domain.specs import MENU, ConvertSpec, QuantizeSpec, Range, SearchSpec, Spec
from app.domain.tuning import LINKS
from app.errors import Unprocessable
from app.storage.catalog import Catalog

_FILLED = {"model": "model@1", "dataset": "data@1"}
LARGEST_SPACE = 100_000


def check(spec: SearchSpec, version: Version | None, dataset: Dataset | None, catalog: Catalog) -> list[str]:
    """Warnings. Raises Unprocessable that names the link, the key or the field that is wrong."""
    objectives = searching.objectives(spec)
    if spec.estimator is not None:
        return _estimator(spec, spec.estimator, objectives, dataset)
    assert spec.chain is not None
    _check_links(spec)
    places = searching.places_of(spec.space, spec.chain)
    _check_amount(spec)
    lists = {key: _samples(of, places[key]) for key, of in spec.space.items()}
    links = _check_values(spec, places, lists)
    _check_formats(links, version, places)
    _check_figures(objectives, links, places, dataset)
    _check_pruner(spec, objectives)
    _check_targets(links, places, lists, catalog)
    warnings = _grid_warnings(spec, {k: p.takes_float for k, p in places.items()}) + _doubled(spec)
    if spec.pruner != "none" and not any(_trains(link) for link in links):
        warnings.append(f"nothing in the chain trains: the pruner {spec.pruner} has nothing to compare")
    return warnings


def first_kind(spec: SearchSpec) -> str:
    """The kind of the chain's first link. Raises Unprocessable for a chain of what are no links."""
    assert spec.chain is not None
    _check_links(spec)
    return str(spec.chain[0]["kind"])


def links_of(spec: SearchSpec) -> list[Spec]:
    """The chain's links as typed specs, with the first value of each key of the space. For a spec that was checked."""
    assert spec.chain is not None
    places = searching.places_of(spec.space, spec.chain)
    return _check_values(spec, places, {key: _samples(of, places[key])[:1] for key, of in spec.space.items()})


def _parsed(link: Mapping[str, Any], spec: SearchSpec) -> Spec:
    return MENU[link["kind"]].model_validate({**_FILLED, **({"model": spec.model} if spec.model else {}), **link})


def _check_links(spec: SearchSpec) -> None:
    for number, link in enumerate(spec.chain or ()):
        kind = link.get("kind")
        if kind not in LINKS:
            raise _bad_link(number, "kind", f"must be one of {', '.join(LINKS)}", f"is of kind {str(kind)[:80]!r}")
        for field in ("model", "dataset"):
            if field in link:
                raise _bad_link(
                    number, field, "belongs to the search", f"names a {field}: each works on what is before"
                )
        if link.get("dry_run"):
            raise _bad_link(number, "dry_run", "makes nothing", "is a dry run, which makes nothing to go on with")
        if kind == "convert" and number < len(spec.chain or ()) - 1:
            raise _bad_link(number, "kind", "convert comes last", "builds an engine, and nothing can be done to that")


def _samples(of: list[Any] | Range, place: Place) -> list[Any]:
    """Choices; of a range its ends, and what may be drawn between them."""
    if not isinstance(of, Range):
        return of
    found = [of.low, of.high, (of.low + of.high) / 2 if of.step is None else min(of.high, of.low + of.step)]
    return [round(v) for v in found] if searching.is_whole(of, place.takes_float) else found


def _check_values(spec: SearchSpec, places: dict[str, Place], lists: dict[str, list[Any]]) -> list[Spec]:
    """The links with the first value of each key. Raises Unprocessable for a value that its field refuses, and for a
    link that is wrong whatever the space says. What only some combinations make wrong fails in its trial."""
    assert spec.chain is not None
    first = {key: values[0] for key, values in lists.items()}
    chain = searching.filled(spec.chain, first)
    for key, place in places.items():
        inside = [other for other in places if places[other].link == place.link]
        link = copy.deepcopy(chain[place.link])
        for value in lists[key]:
            searching.put(link, place, value)
            try:
                _parsed(link, spec)
            except ValidationError as error:
                for found in error.errors():
                    at = tuple(str(step) for step in found["loc"])
                    if at[: len(place.path)] == place.path or (not at and len(inside) == 1 and value != first[key]):
                        raise _bad_value(key, value, found["msg"]) from None
    links: list[Spec] = []
    for number, link in enumerate(chain):
        try:
            links.append(_parsed(link, spec))
        except ValidationError as error:
            found = error.errors()[0]
            if not found["loc"] and sum(place.link == number for place in places.values()) > 1:
                links.append(MENU[link["kind"]].model_construct(**link))  # another combination may be right
                continue
            field = ".".join(str(step) for step in found["loc"])
            raise _bad_link(
                number, field, found["msg"], f"({link['kind']}) is wrong: {field or 'it'}: {found['msg']}"
            ) from None
    return links


def _check_amount(spec: SearchSpec) -> None:
    count = sum(len(of) for of in spec.space.values() if isinstance(of, list))
    if count > LARGEST_SPACE:
        raise Unprocessable(
            f"`space` lists {count} choices, and at most {LARGEST_SPACE} are looked at",
            code="bad_space",
            hint="fewer choices, or ranges",
            errors=[{"loc": ["space"], "msg": "has too many choices"}],
        )


def _check_formats(links: list[Spec], version: Version | None, places: Mapping[str, Place]) -> None:
    """Whether each link can start from what the one before makes."""
    searched = {(place.link, place.path) for place in places.values()}
    for number, link in enumerate(links):
        if number and isinstance(links[number - 1], QuantizeSpec):
            if link.needs == "trainable":
                raise _bad_link(
                    number, "kind", "needs weights to train", "needs weights, and quantize gives a quantized graph"
                )
            if isinstance(link, QuantizeSpec):
                raise _bad_link(number, "kind", "quantizes twice", "quantizes what the one before quantized")
            if isinstance(link, ConvertSpec) and link.precision != "int8" and (number, ("precision",)) not in searched:
                told = f"builds an engine in {link.precision}, and engines of a quantized graph are int8"
                raise _bad_link(number, "precision", 'must be "int8"', told)
        if number == 0 and version is not None and link.needs == "trainable" and not version.trainable:
            raise Unprocessable(
                f"link 0 of the chain cannot start from {version.ref}, which is of format {version.format}",
                code="not_trainable",
                hint="use a version of format torch",
                errors=[{"loc": ["chain", 0], "msg": "needs a version that can be trained"}],
            )


def _check_targets(
    links: list[Spec], places: Mapping[str, Place], lists: Mapping[str, list[Any]], catalog: Catalog
) -> None:
    """Raises Conflict for a target that no worker can build; of several, some of which lack a precision, a trial
    finds out."""
    searched = {(place.link, place.path): lists[key] for key, place in places.items()}
    workers = catalog.takers()
    for number, link in enumerate(links):
        if isinstance(link, ConvertSpec):
            targets = searched.get((number, ("target",)), [link.target])
            precisions = searched.get((number, ("precision",)), [link.precision])
            for target in targets:
                check_target(target, workers, precisions if len(targets) == 1 else ())


def _check_figures(
    objectives: list[Objective], links: list[Spec], places: Mapping[str, Place], dataset: Dataset | None
) -> None:
    """Refuses what no trial of this search could tell: each would do its work, and fail."""
    might_train = any(_trains(link) or isinstance(link, QuantizeSpec) for link in links) or any(
        "finetune" in place.path for place in places.values()
    )
    for number, objective in enumerate(objectives):
        why = None
        if dataset is not None and objective.metric in ("accuracy", "r2"):
            own = "r2" if dataset.classes is None else "accuracy"
            if objective.metric != own:
                why = f"{dataset.ref} is judged by {own}"
        elif objective.metric == "loss" and not might_train:
            why = "nothing in the chain trains"
        if why is not None:
            raise Unprocessable(
                f"no trial of this search has a figure {objective.metric!r}: {why}",
                code="unknown_objective",
                hint='take "quality": accuracy or r2, as the data set has it',
                errors=[{"loc": ["objectives", number], "msg": why}],
            )


def _check_pruner(spec: SearchSpec, objectives: list[Objective]) -> None:
    if spec.pruner == "none":
        return
    if spec.pruner == "halving":
        raise _bad_pruner("halving gives an estimator more and more rows", "a chain takes median, asha or hyperband")
    if len(objectives) > 1:
        raise _bad_pruner(
            f"{spec.pruner} compares trials by one figure, and `objectives` has {len(objectives)}",
            "one objective, or no pruner",
        )
    if objectives[0].metric not in searching.PER_EPOCH:
        raise _bad_pruner(
            f"{spec.pruner} compares figures of an epoch, and {objectives[0].metric} is known at the end alone",
            f"objectives that an epoch has: {', '.join(sorted(searching.PER_EPOCH))}",
        )


def _grid_warnings(spec: SearchSpec, takes_float: dict[str, bool]) -> list[str]:
    if spec.sampler != "grid":
        return []
    lists = {key: searching.steps_of(key, of, takes_float[key]) for key, of in spec.space.items()}
    size = searching.grid_size(lists)
    if spec.trials is not None and spec.trials > size:
        return [f"the grid has {size} points: {size} trials, not {spec.trials}"]
    if spec.trials is not None and spec.trials < size:
        return [f"the grid has {size} points, of which {spec.trials} are drawn with the seed"]
    return []


def _doubled(spec: SearchSpec) -> list[str]:
    return [
        f"`{key}` names a value twice: it counts once"
        for key, of in spec.space.items()
        if isinstance(of, list) and len(searching.unique(of)) < len(of)
    ]


def _trains(link: Spec) -> bool:
    return str(getattr(link, "kind", "")) == "train" or getattr(link, "finetune", None) is not None


def _estimator(spec: SearchSpec, estimator: str, objectives: list[Objective], dataset: Dataset | None) -> list[str]:
    named(estimator)
    if dataset is not None:
        path = class_path(estimator, dataset)
        check_names(path, PARAMETERS[path.partition(":")[2]], spec.params, spec.space)
        if spec.cv > (rows := dataset.splits["train"].rows):
            raise Unprocessable(
                f"cv is {spec.cv}, and the training split of {dataset.ref} has {rows} rows",
                code="too_few_rows",
                hint="fewer folds, or more rows",
                errors=[{"loc": ["cv"], "msg": f"must be at most {rows}"}],
            )
    if [o.metric for o in objectives] not in (["quality"], ["accuracy"], ["r2"]) or objectives[
        0
    ].direction != "maximize":
        raise Unprocessable(
            "an estimator is searched for its quality alone, by cross-validation",
            code="unknown_objective",
            hint='leave out `objectives`, or say ["quality"]',
            errors=[{"loc": ["objectives"], "msg": 'must be ["quality"]'}],
        )
    _check_figures(objectives, [], {}, dataset)
    if spec.pruner not in ("none", "halving"):
        raise _bad_pruner(f"{spec.pruner} compares epochs, and an estimator has none", "take `halving`")
    if spec.pruner == "halving" and spec.sampler not in ("grid", "random"):
        raise _bad_pruner("halving begins with all its candidates", "take the sampler grid or random")
    return _grid_warnings(spec, dict.fromkeys(spec.space, False)) + _doubled(spec)


def _bad_value(key: str, value: Any, why: str) -> Unprocessable:
    return Unprocessable(
        f"`space` has {key} try {str(value)[:80]!r}, which that field does not take: {why}",
        code="bad_space",
        hint="GET /v1/jobs/kinds has the bounds of every field",
        errors=[{"loc": ["space", key], "msg": f"{str(value)[:80]}: {why}"}],
    )


def _bad_link(number: int, field: str, why: str, told: str) -> Unprocessable:
    loc: list[str | int] = ["chain", number, *(field.split(".") if field else ())]
    return Unprocessable(
        f"link {number} of the chain {told}",
        code="bad_chain",
        hint="links are specs without model and dataset, each working on what the one before gave",
        errors=[{"loc": loc, "msg": why}],
    )


def _bad_pruner(told: str, hint: str) -> Unprocessable:
    return Unprocessable(told, code="bad_pruner", hint=hint, errors=[{"loc": ["pruner"], "msg": "does not fit"}])
