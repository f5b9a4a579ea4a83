"""What `kubectl kustomize` renders, of the few things that our folders use: resources, namespace, images, patches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonpatch
import yaml

Document = dict[str, Any]
KNOWN = {"apiVersion", "kind", "resources", "namespace", "images", "patches"}
# What lies in no namespace.
FREE = {"Namespace"}


def rendered(folder: Path) -> list[Document]:
    """Every document that a folder makes. KeyError: it uses something that is not known here."""
    about = yaml.safe_load((folder / "kustomization.yaml").read_text())
    if not set(about) <= KNOWN:
        raise KeyError(set(about) - KNOWN)
    found: list[Document] = []
    for name in about["resources"]:
        path = folder / name
        found += rendered(path) if path.is_dir() else [d for d in yaml.safe_load_all(path.read_text()) if d]
    for document in found:
        if "namespace" in about and document["kind"] not in FREE:
            document["metadata"]["namespace"] = about["namespace"]
        for container in containers(document):
            for image in about.get("images", ()):
                if container["image"] == image["name"]:
                    container["image"] = f"{image['newName']}:{image['newTag']}"
    for patch in about.get("patches", ()):
        steps = jsonpatch.JsonPatch(yaml.safe_load(patch["patch"]))
        hits = [number for number, document in enumerate(found) if is_meant(patch["target"], document)]
        if not hits:
            raise KeyError(f"nothing is patched by {patch}")
        for number in hits:
            found[number] = steps.apply(found[number])
    return found


def containers(document: Document) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pod(document).get("containers", [])
    return found


def pod(document: Document) -> dict[str, Any]:
    found: dict[str, Any] = document.get("spec", {}).get("template", {}).get("spec", {})
    return found


def is_meant(target: dict[str, str], document: Document) -> bool:
    group, _, version = document["apiVersion"].rpartition("/")
    told = {"group": group, "version": version, "kind": document["kind"], "name": document["metadata"]["name"]}
    return all(told[key] == value for key, value in target.items())
