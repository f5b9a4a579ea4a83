"""ONNX to a plan, on TensorRT 10 and 11 and TensorRT for RTX. Whatever it answers None or False to becomes an error."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from app.errors import Internal, Problem, Unprocessable
from app.gpu.messages import listener, words
from app.runtimes import BuildOptions, TimingCache
from app.runtimes._trt.shapes import Bounds, profiles

Progress = Callable[[float, str], None]
# Builders that end at the same time: how often one of them takes in what another has just measured.
_ATTEMPTS = 3


def build(trt: Any, source: Path, options: BuildOptions, progress: Progress) -> bytes:
    """The plan. source: ONNX in the precision that it is to have, with its weights inside. progress: share in 0…1 of
    the build, and TensorRT's name of what it does; an exception of it ends the build and is raised again.

    Raises Unprocessable naming the operator that is refused, Internal with TensorRT's own words.
    """
    messages = listener(trt)
    monitor = _monitor(trt, progress)
    # Builder, network, parser and listener are known to each other inside TensorRT alone: they stay until the end. And
    # they go there, whatever happens: an error's traceback would keep them for the garbage collector, which may run
    # while TensorRT logs, and then waits for ever for a lock that TensorRT holds.
    builder = network = parser = config = cache = blob = None
    try:
        if not trt.init_libnvinfer_plugins(messages, ""):
            raise Internal(f"TensorRT's plugins do not load: {messages.said()}", code="plugins_broken")
        builder = trt.Builder(messages)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, messages)
        if not parser.parse_from_file(str(source)):
            raise _unparsed(parser, messages)
        if network.num_inputs == 0 or network.num_outputs == 0:
            raise Unprocessable("the graph has no inputs or no outputs", code="unsupported_graph")
        _check_types(trt, network)
        config = _config(trt, builder, options)
        config.progress_monitor = monitor
        for bounds in profiles(_inputs(network), options.max_batch, options.shapes, options.buckets):
            _add_profile(builder, config, bounds, messages)
        cache = _timing_cache(config, options.timing_cache)
        blob = builder.build_serialized_network(network, config)
        if blob is None and monitor.raised is None and _let_allocate(trt, config):
            messages.said()
            blob = builder.build_serialized_network(network, config)
        if monitor.raised is not None:
            raise monitor.raised
        if blob is None:
            raise _unbuilt(messages.said())
        if cache is not None and options.timing_cache is not None:
            _keep(config, cache, options.timing_cache)
        return bytes(blob)
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        blob = cache = config = parser = network = builder = None


def _check_types(trt: Any, network: Any) -> None:
    tensors = [network.get_input(n) for n in range(network.num_inputs)]
    tensors += [network.get_output(n) for n in range(network.num_outputs)]
    for tensor in tensors:
        try:
            trt.nptype(tensor.dtype)
        except TypeError:
            raise Unprocessable(
                f"{tensor.name} is {str(tensor.dtype).rpartition('.')[2].lower()}, which numpy does not have",
                code="unsupported_dtype",
                hint="let the model take and give float32, and cast within",
            ) from None


def _inputs(network: Any) -> dict[str, tuple[int, ...]]:
    tensors = [network.get_input(n) for n in range(network.num_inputs)]
    if sizes := [t.name for t in tensors if t.is_shape_tensor]:
        raise Unprocessable(
            f"input {', '.join(sizes)} holds sizes, on which the shapes of others depend",
            code="unsupported_graph",
            hint="make these sizes constants of the model, or convert to onnxruntime",
        )
    return {t.name: tuple(t.shape) for t in tensors}


def _config(trt: Any, builder: Any, options: BuildOptions) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # names of layers and their precisions
    if options.level is not None:
        config.builder_optimization_level = options.level
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    # On by default since TensorRT 8, and fp32 is to be fp32.
    (config.set_flag if options.precision == "tf32" else config.clear_flag)(trt.BuilderFlag.TF32)
    if options.sparse:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    if options.refit:
        config.set_flag(trt.BuilderFlag.REFIT)
    if (alone := _user_allocation(trt)) is not None:
        config.set_flag(alone)
    return config


def _user_allocation(trt: Any) -> Any:
    """TensorRT for RTX records a run as a CUDA graph only where the run allocates nothing, and promises that of a plan
    on demand. Other TensorRTs have no such flag: None."""
    return getattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION", None)


def _let_allocate(trt: Any, config: Any) -> bool:
    """Networks whose shapes depend on values cannot promise it. Whether there was something to take back."""
    alone = _user_allocation(trt)
    if alone is None:
        return False
    config.clear_flag(alone)
    return True


def _add_profile(builder: Any, config: Any, bounds: Mapping[str, Bounds], messages: Any) -> None:
    profile = builder.create_optimization_profile()
    for name, of in bounds.items():
        profile.set_shape(name, of.smallest, of.best, of.largest)  # what contradicts itself raises
    if config.add_optimization_profile(profile) < 0:
        raise Internal(f"TensorRT refuses the sizes {dict(bounds)}: {messages.said()}", code="bad_profile")


def _timing_cache(config: Any, kept: TimingCache | None) -> Any:
    """What was measured of kernels before: most of the time of a build. Damaged ones, and those of another GPU or
    version, are refused: it begins anew. None where nothing is to be kept, or TensorRT takes no cache at all."""
    for known in () if kept is None else (kept.read(), b""):
        cache = config.create_timing_cache(known)
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            return cache
    return None


def _keep(config: Any, cache: Any, kept: TimingCache) -> None:
    """Keeps what is known now, with what others have measured meanwhile."""
    for _ in range(_ATTEMPTS):
        blob = cache.serialize()
        if blob is None or kept.write(bytes(blob)):
            return
        others = config.create_timing_cache(kept.read())
        if others is not None:
            cache.combine(others, ignore_mismatch=False)  # its answer is of no use: else ours alone is kept


def _monitor(trt: Any, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # met when the library is there
        """TensorRT calls it from its own threads, with phases within phases; a False from it ends the build."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.raised: BaseException | None = None
            self._share = 0.0
            self._phases: dict[str, tuple[str | None, int, int]] = {}  # name → phase around it, steps, steps done

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._phases[phase_name] = (parent_phase, max(1, num_steps), 0)
            self._tell(phase_name)

        def phase_finish(self, phase_name: str) -> None:
            self._phases.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self._phases:
                parent, steps, _ = self._phases[phase_name]
                self._phases[phase_name] = (parent, steps, min(steps, step + 1))
                self._tell(phase_name)
            return self.raised is None

        def _tell(self, name: str) -> None:
            if self.raised is not None:
                return
            self._share = max(self._share, min(1.0, self._done(name)))
            try:
                progress(self._share, name.lower())
            except BaseException as error:  # it must not pass through TensorRT
                self.raised = error

        def _done(self, name: str) -> float:
            """The share of the whole: a phase is one step of the phase around it."""
            share, seen = 0.0, set()
            here: str | None = name
            while here in self._phases and here not in seen:
                seen.add(here)
                parent, steps, done = self._phases[here]
                share = (done + share) / steps if done < steps else 1.0
                here = parent
            return share

    return Monitor()


def _unparsed(parser: Any, messages: Any) -> Problem:
    """What the parser says of the nodes that it refuses: each with its operator."""
    errors = [parser.get_error(n) for n in range(parser.num_errors)]
    said = messages.said()
    operators: dict[str, None] = {}
    told: list[str] = []
    for error in errors:
        operator, name = _ask(error, "node_operator"), _ask(error, "node_name")
        if (operator and "UNSUPPORTED_NODE" in str(error.code())) or "Plugin not found" in str(error.desc()):
            operators[str(operator)] = None
        why = words([str(error.desc())])
        # Of what it has no code for, what did not hold is a bare condition.
        why = "TensorRT has no implementation of it" if why == "false" else why
        told.append(f"{operator or 'the graph'}{f' ({name})' if name else ''}: {why}")
    if operators:
        return Unprocessable(
            f"TensorRT has no implementation of: {', '.join(operators)}",
            code="unsupported_operator",
            hint="choose another target, or export the model without these operators",
            errors=[{"loc": ["model"], "msg": text} for text in told[:8]],
        )
    return Unprocessable(
        f"TensorRT refuses this graph: {'; '.join(told)[:500] or said}",
        code="unsupported_graph",
        hint="choose another target, or check the file with onnx.checker",
    )


def _ask(error: Any, name: str) -> str:
    """A figure of a ParserError that not every version has."""
    found = getattr(error, name, None)
    return str(found()) if found is not None else ""


def _unbuilt(said: str) -> Problem:
    lowered = said.lower()
    if "out of memory" in lowered or "outofmemory" in lowered or "insufficient workspace" in lowered:
        return Internal(
            f"the GPU's memory does not suffice for this build: {said}",
            code="gpu_out_of_memory",
            hint="a smaller max_batch, a larger workspace_bytes, or a GPU that nothing else uses meanwhile",
        )
    return Unprocessable(
        f"TensorRT cannot build this graph: {said}",
        code="unsupported_graph",
        hint="choose another target or precision; the operator is named in TensorRT's words",
    )
