"""What fields and contestants are called on the page: words for keys, the design for a name like `design-3`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_WORDS = {
    "amounts": "shares that go",
    "baseline_latency": "latency of the baseline",
    "baseline_quality": "quality of the baseline",
    "best_epoch": "best epoch",
    "best_params": "best settings",
    "best_score": "best score",
    "best_so_far": "best so far",
    "best_validation": "best on the validation split",
    "bits": "bits of a weight",
    "bytes": "size",
    "cache_hit": "from the cache",
    "cache_hits": "from the cache",
    "change": "change at the amount asked for",
    "chosen_on": "chosen on",
    "counted_in": "zeros counted in",
    "cv_results": "candidates",
    "dry_run": "dry run",
    "eager_speed": "speed in torch eager",
    "epochs_per_step": "epochs per step",
    "estimate_s": "would take",
    "final_distillation_loss": "last loss towards the teacher",
    "final_loss": "last loss",
    "finetune": "fine-tuning",
    "floor_ms": "a run of an engine that does nothing, ms",
    "guard": "bound",
    "higher_precision": "left in higher precision",
    "importances": "what mattered",
    "in_channels": "channels in",
    "int8_layers": "layers in int8",
    "judged_on": "judged on",
    "kept_norm": "weight norm kept",
    "kept_norm_unpermuted": "kept without permuting",
    "latency_ms": "ms per run",
    "left_alone": "left alone",
    "load_1m": "load of the machine",
    "lr": "learning rate",
    "macs": "multiply-adds",
    "max_abs_diff": "largest difference",
    "max_accuracy_drop": "accuracy that may be lost",
    "max_batch": "most rows of a run",
    "max_rel_diff": "largest relative difference",
    "mean_fit_time": "seconds to fit",
    "mean_score_time": "seconds to score",
    "mean_test_score": "mean score",
    "opset": "ONNX operator set",
    "out_channels": "channels out",
    "p50_ms": "median, ms",
    "p95_ms": "95 %, ms",
    "p99_ms": "99 %, ms",
    "params": "settings",
    "parent_quality": "quality of what it was made from",
    "parity": "agreement with the source",
    "pruned_after": "given up after epoch",
    "p_value": "p-value",
    "quality_after": "quality after",
    "quality_before": "quality before",
    "quality_change": "change of quality",
    "quantized_layers": "layers in int8",
    "rank_test_score": "place",
    "relative_error": "relative error",
    "resumed_at_epoch": "resumed at epoch",
    "rows_per_s": "rows per second",
    "same_as": "same as trial",
    "seconds": "took",
    "samples_needed": "samples that would decide it",
    "source_quality": "quality of the source",
    "sparsity": "share of zeros",
    "sparsity_after": "zeros after",
    "sparsity_before": "zeros before",
    "speedup": "times as fast",
    "speedup_over_torch_eager": "times as fast as torch eager (measured apart)",
    "std_test_score": "spread of the score",
    "stopped_early": "stopped early",
    "throughput_rps": "rows per second",
    "training_s": "one training takes",
    "val": "validation",
    "val_accuracy": "accuracy (validation)",
    "val_accuracy_pruned": "accuracy once pruned (validation)",
    "val_accuracy_tuned": "accuracy once fine-tuned (validation)",
    "val_loss": "loss (validation)",
    "val_r2": "r² (validation)",
    "r2": "r²",
    "whole": "of the whole network",
    "why_not": "why not",
    "with": "together with",
}
# Fields that are shown in other units than they are held in: bytes, and seconds.
SIZES = frozenset({"bytes", "size"})
DURATIONS = frozenset({"estimate_s", "training_s", "seconds", "elapsed_s"})
# Fields that are drawn, and are no reading in a table.
DRAWN = frozenset({"histogram"})
# Fields whose own fields are names that somebody gave: of layers, of inputs, of what is varied.
OF_NAMES = frozenset(("layers", "channels", "left_alone", "space", "params", "best_params", "importances", "shapes"))


def heading(key: str) -> str:
    """A field as a reader calls it: p50_ms → median, ms."""
    key = str(key)
    if (words := _WORDS.get(key)) is not None:
        return words
    if key.startswith("param_"):
        return key[6:].replace("_", " ")
    for ending, unit in (("_ms", ", ms"), ("_s", ", s"), ("_rps", ", rows per second")):
        if key.endswith(ending) and len(key) > len(ending):
            return key.removesuffix(ending).replace("_", " ") + unit
    return key.replace("_", " ")


def contestants(report: Mapping[str, Any]) -> dict[str, str]:
    """What an optimize job has raced, in words, by the names that its report calls it."""
    table = report.get("table")
    rows = [row for row in table if isinstance(row, Mapping)] if isinstance(table, list) else []
    found: dict[str, str] = {}
    for row in rows:
        if row.get("name") and row.get("design"):
            name, words = str(row["name"]), str(row["design"])
            found[name] = words if words not in found.values() else f"{words} ({name})"
    return found | ({"nothing at all": "an engine that does nothing"} if found else {})


def renamed(held: Any, names: Mapping[str, str], depth: int = 0) -> Any:
    """The same with words in place of names; what lies very deep stays as it is."""
    if isinstance(held, str):
        return names.get(held, held)
    if depth > 8:
        return held
    if isinstance(held, Mapping):
        return {names.get(key, key): renamed(value, names, depth + 1) for key, value in held.items()}
    if isinstance(held, list):
        return [renamed(value, names, depth + 1) for value in held]
    return held
