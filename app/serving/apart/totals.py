"""The metrics of several processes as those of one: counters, gauges and histograms of the same labels are added up."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.parser import text_string_to_metric_families

_Key = tuple[str, tuple[tuple[str, str], ...]]


class Totals:
    """What processes that have ended had counted. Their gauges ended with them."""

    def __init__(self) -> None:
        self.counted: dict[_Key, float] = {}

    def keep(self, text: str) -> None:
        """text: Prometheus' text form, as the process gave it last."""
        for family in text_string_to_metric_families(text):
            if family.type in ("counter", "histogram"):
                for sample in family.samples:
                    key = (sample.name, tuple(sorted(sample.labels.items())))
                    self.counted[key] = self.counted.get(key, 0.0) + sample.value


def add(texts: Iterable[str], past: Totals) -> str:
    """One text in Prometheus' form. `_created` stamps are left out: a sum of moments means nothing."""
    heads: dict[str, tuple[str, str]] = {}
    found: dict[str, dict[_Key, float]] = {}
    family_of: dict[str, str] = {}
    for text in texts:
        for family in text_string_to_metric_families(text):
            if family.name.endswith("_created"):
                continue
            heads.setdefault(family.name, (family.documentation, family.type))
            samples = found.setdefault(family.name, {})
            for sample in family.samples:
                if sample.name.endswith("_created"):
                    continue
                family_of[sample.name] = family.name
                key = (sample.name, tuple(sorted(sample.labels.items())))
                samples[key] = samples.get(key, 0.0) + sample.value
    for key, value in past.counted.items():
        if name := family_of.get(key[0]):
            found[name][key] = found[name].get(key, 0.0) + value
    lines = []
    for name, (told, kind) in heads.items():
        shown = f"{name}_total" if kind == "counter" else name
        lines += [f"# HELP {shown} {_escaped(told)}", f"# TYPE {shown} {kind}"]
        for (sample_name, labels), value in found[name].items():
            inside = ",".join(f'{k}="{_escaped(v, quotes=True)}"' for k, v in labels)
            lines.append(f"{sample_name}{{{inside}}} {value}" if inside else f"{sample_name} {value}")
    return "".join(f"{line}\n" for line in lines)


def _escaped(text: str, *, quotes: bool = False) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quotes else text
