"""What a search names: figures to make better, and the places in a chain of specs that its space gives values to."""

from __future__ import annotations

import copy
import difflib
import itertools
import json
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from app.domain.specs import MENU
from app.domain.tuning import Aim, Range, SearchSpec
from app.errors import Unprocessable

Direction = Literal["maximize", "minimize"]
LARGEST_GRID = 100_000
USUAL_TRIALS = 20
NOT_SEARCHED = frozenset({"kind", "model", "dataset", "dry_run"})
DIRECTIONS: dict[str, Direction] = {
    "quality": "maximize", "accuracy": "maximize", "r2": "maximize", "loss": "minimize", "latency_ms": "minimize",
    "throughput": "maximize", "parameters": "minimize", "macs": "minimize", "bytes": "minimize",
    "sparsity": "maximize",
}  # fmt: skip
ALSO = {"latency": "latency_ms", "size": "bytes"}
MEASURED = frozenset({"latency_ms", "throughput"})
# What every epoch of a training tells: a pruner has nothing else to compare.
PER_EPOCH = frozenset({"quality", "accuracy", "r2", "loss"})


@dataclass(frozen=True)
class Objective:
    """metric: a key of DIRECTIONS."""

    metric: str
    direction: Direction


def objectives(spec: SearchSpec) -> list[Objective]:
    """Raises Unprocessable for a figure that no trial has, or one that is named twice."""
    found: list[Objective] = []
    for place, said in enumerate(spec.objectives):
        asked = said if isinstance(said, Aim) else Aim(metric=said)
        metric = ALSO.get(asked.metric, asked.metric)
        if metric not in DIRECTIONS:
            raise Unprocessable(
                f"no trial has a figure {asked.metric[:80]!r}",
                code="unknown_objective",
                hint=f"objectives are: {', '.join([*DIRECTIONS, *ALSO])}",
                errors=[{"loc": ["objectives", place], "msg": "there is no such figure"}],
            )
        if metric in {o.metric for o in found}:
            raise Unprocessable(
                f"`objectives` names {metric} twice",
                code="unknown_objective",
                errors=[{"loc": ["objectives", place], "msg": "is there already"}],
            )
        found.append(Objective(metric, asked.direction or DIRECTIONS[metric]))
    return found


@dataclass(frozen=True)
class Place:
    """A field of a link of a chain, perhaps of a spec nested in it. takes_int: whether it takes whole numbers alone."""

    link: int
    kind: str
    path: tuple[str, ...]
    takes_float: bool = False


def place_of(key: str, chain: Sequence[Mapping[str, Any]]) -> Place:
    """Where `kind.field`, `index.kind.field` or `prune.finetune.lr` points. Raises Unprocessable that names the key."""
    steps = key.split(".")
    kinds = [str(link.get("kind")) for link in chain]
    index: int | None = None
    if steps[0].isdecimal():
        if len(steps[0]) > 4 or int(steps[0]) >= len(chain):
            raise _bad_key(key, f"there is no link {steps[0][:20]}: the chain has {len(chain)}, counted from 0")
        index, steps = int(steps[0]), steps[1:]
    if len(steps) < 2 or not all(steps):
        raise _bad_key(key, "a key says `kind.field`, such as `train.lr`", hint=_all_keys(kinds))
    kind, path = steps[0], tuple(steps[1:])
    found = [n for n, k in enumerate(kinds) if k == kind] if index is None else [index]
    if not found:
        raise _bad_key(key, f"the chain has no {kind!r}", hint=f"it is: {', '.join(kinds)}")
    if len(found) > 1:
        told = ", ".join(f"`{n}.{key}`" for n in found)
        raise _bad_key(key, f"the chain has {len(found)} links of kind {kind}", hint=f"say which: {told}")
    if kinds[found[0]] != kind:
        raise _bad_key(key, f"link {found[0]} is a {kinds[found[0]]}, not a {kind}")
    return Place(found[0], kind, path, _takes_float(key, kind, path))


def _takes_float(key: str, kind: str, path: tuple[str, ...]) -> bool:
    """Raises Unprocessable for a path that no field lies at."""
    model: type[BaseModel] | None = MENU[kind]
    annotation: Any = None
    for depth, name in enumerate(path):
        fields = sorted(set(model.model_fields) - NOT_SEARCHED) if model is not None else []
        if name not in fields:
            at = ".".join((kind, *path[:depth]))
            if model is None:
                raise _bad_key(key, f"`{at}` is one value, and has no fields")
            close = difflib.get_close_matches(name, fields, 1)
            told = f"`{at}` has no field {name[:80]!r} to search" + (f": is {close[0]!r} meant?" if close else "")
            raise _bad_key(key, told, hint=f"its fields: {', '.join(fields)}")
        assert model is not None
        annotation = model.model_fields[name].annotation
        model = next((a for a in _parts(annotation) if isinstance(a, type) and issubclass(a, BaseModel)), None)
    return float in _parts(annotation)


def _parts(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def filled(chain: Sequence[Mapping[str, Any]], values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The chain with a value at each key of the space."""
    made = [copy.deepcopy(dict(link)) for link in chain]
    for key, value in values.items():
        place = place_of(key, chain)
        put(made[place.link], place, value)
    return made


def put(link: dict[str, Any], place: Place, value: Any) -> None:
    """Sets the field of a link, in place."""
    at = link
    for step in place.path[:-1]:
        if not isinstance(at.get(step), dict):
            at[step] = {}
        at = at[step]
    at[place.path[-1]] = value


def places_of(keys: Iterable[str], chain: Sequence[Mapping[str, Any]]) -> dict[str, Place]:
    """Where every key points. Raises Unprocessable, also for two keys of which one would overwrite the other."""
    places: dict[str, Place] = {}
    for key in keys:
        place = place_of(key, chain)
        for other, taken in places.items():
            shorter = min(len(place.path), len(taken.path))
            if place.link == taken.link and place.path[:shorter] == taken.path[:shorter]:
                raise _bad_key(key, f"it and {other!r} give a value to the same field", hint="leave one of them out")
        places[key] = place
    return places


def is_whole(of: Range, takes_float: bool) -> bool:
    """Whether a range is of whole numbers: as it says, or as its field takes them, where its bounds are whole."""
    if of.type is not None:
        return of.type == "int"
    return not takes_float and all(float(v).is_integer() for v in (of.low, of.high, of.step or 1))


def unique(choices: Sequence[Any]) -> list[Any]:
    """Without those that were there before; True is not 1 here."""
    found: dict[tuple[type, Any], Any] = {}
    for choice in choices:
        same = json.dumps(choice, sort_keys=True) if isinstance(choice, list | dict) else choice
        found.setdefault((type(choice), same), choice)
    return list(found.values())


def steps_of(key: str, of: list[Any] | Range, takes_float: bool) -> list[Any]:
    """The values that a grid takes. Raises Unprocessable for a range that has no steps, or more than a grid may have
    points."""
    if not isinstance(of, Range):
        return unique(of)
    whole = is_whole(of, takes_float)
    step = of.step or (1.0 if whole and not of.log else None)
    if step is None:
        raise _bad_key(
            key, "a grid needs choices, and this range has no steps",
            hint="list its values, say `step`, or take the sampler random or tpe",
        )  # fmt: skip
    count = int((of.high - of.low) / step + 1e-9) + 1
    if count > LARGEST_GRID:
        raise too_large(count)
    found = [of.low + n * step for n in range(count)]
    # 0.1 + 2 × 0.1 is to be 0.3: what a person would have written down.
    return [round(v) for v in found] if whole else [float(f"{v:.12g}") for v in found]


def grid_size(lists: Mapping[str, Sequence[Any]]) -> int:
    """Raises Unprocessable where there are more points than a grid may have."""
    size = 1
    for values in lists.values():
        size *= len(values)
    if size > LARGEST_GRID:
        raise too_large(size)
    return size


def points(lists: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Every combination once: by sorted name, the last one fastest, as scikit-learn's ParameterGrid has them."""
    ordered = dict(sorted(lists.items()))
    for values in itertools.product(*ordered.values()):
        yield dict(zip(ordered, values, strict=True))


def too_large(size: int) -> Unprocessable:
    return Unprocessable(
        f"the grid has {size} points, and at most {LARGEST_GRID} are tried",
        code="grid_too_large",
        hint="fewer choices, or the sampler random or tpe with `trials`",
        errors=[{"loc": ["space"], "msg": "has too many combinations"}],
    )


def _all_keys(kinds: Sequence[str]) -> str:
    fields = [
        f"{k}.{f}" for k in dict.fromkeys(kinds) if k in MENU for f in MENU[k].model_fields if f not in NOT_SEARCHED
    ]
    return f"keys are: {', '.join(fields[:40])}" + (", …" if len(fields) > 40 else "")


def _bad_key(key: str, detail: str, hint: str | None = None) -> Unprocessable:
    return Unprocessable(
        f"`space` names {key[:100]!r}: {detail}",
        code="bad_space",
        hint=hint or "GET /v1/jobs/kinds has the fields of every kind",
        errors=[{"loc": ["space", key], "msg": detail}],
    )
