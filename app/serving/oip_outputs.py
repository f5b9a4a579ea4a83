"""Which outputs a request of the Open Inference Protocol asks for, and in which form."""

from __future__ import annotations

from typing import Any, NamedTuple

from app.errors import BadRequest
from app.serving.oip import BINARY_ONLY, Form


class Want(NamedTuple):
    """One output that is asked for. classes: as so many classes instead of the tensor itself; 0: the tensor."""

    name: str
    binary: bool
    classes: int


def wants_of(given: dict[str, Any], everything: bool, form: Form) -> tuple[Want, ...]:
    """What `outputs` of a request's JSON asks for; all of them where it says nothing. everything: whether as binary
    unless an output says otherwise. Raises BadRequest."""
    entries = given.get("outputs")
    if entries is not None and not isinstance(entries, list):
        raise BadRequest('outputs must be a list of {"name": ...}', code="bad_output", hint=_there(form))
    if not entries:
        wants = [Want(name, everything, 0) for name in form.outputs]
    else:
        wants = [_want(entry, everything, form) for entry in entries]
        if len({w.name for w in wants}) != len(wants):
            raise BadRequest("an output is asked for twice", code="bad_output", hint="ask for each output once")
    for want in wants:
        datatype = form.outputs[want.name]
        if datatype in BINARY_ONLY and not want.binary and not want.classes:
            raise BadRequest(
                f"output {want.name!r} is {datatype}, of which JSON has no numbers",
                code="bad_output",
                hint='ask for it as binary: "parameters": {"binary_data": true}',
            )
    return tuple(wants)


def _want(entry: Any, everything: bool, form: Form) -> Want:
    if not isinstance(entry, dict) or not isinstance(name := entry.get("name"), str):
        raise BadRequest("each output must be an object with a name", code="bad_output", hint=_there(form))
    if name not in form.outputs:
        raise BadRequest(f"the model has no output {name[:80]!r}", code="bad_output", hint=_there(form))
    where = f"output {name!r}"
    parameters = object_in(entry, "parameters", where)
    refuse_shared(parameters, where)
    binary = flag_in(parameters, "binary_data", where)
    classes = parameters.get("classification", 0)
    if type(classes) is not int or classes < 0:
        raise BadRequest(f"{where}: classification must be a number of classes, such as 3", code="bad_output")
    if classes and form.outputs[name] == "BYTES":
        raise BadRequest(f"{where} is BYTES: it has no classes to order", code="bad_output")
    return Want(name, everything if binary is None else binary, classes)


def object_in(given: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    """The object of that name, empty where there is none. Raises BadRequest."""
    found = given.get(name)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise BadRequest(f"{where}: {name} must be an object", hint="/docs has an example")
    return found


def flag_in(parameters: dict[str, Any], name: str, where: str) -> bool | None:
    """A boolean, or None where there is none. Raises BadRequest."""
    found = parameters.get(name)
    if found is not None and not isinstance(found, bool):
        raise BadRequest(f"{where}: {name} must be true or false, not {str(found)[:40]!r}")
    return found


def refuse_shared(parameters: dict[str, Any], where: str) -> None:
    """Raises BadRequest for a tensor in shared memory: no region can have been registered."""
    if "shared_memory_region" in parameters:
        raise BadRequest(f"{where}: shared memory is not served here", hint="send the tensor in the body, as binary")


def _there(form: Form) -> str:
    return f"the model has {list(form.outputs)}"
