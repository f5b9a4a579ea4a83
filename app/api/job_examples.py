"""A body of POST /v1/jobs for each kind, for the OpenAPI page. A test has the menu take every one of them."""

from __future__ import annotations

from typing import Any

EXAMPLES: dict[str, dict[str, Any]] = {
    "train": {"kind": "train", "model": "digits", "dataset": "digits", "epochs": 30, "lr": 0.05},
    "train, distilling a larger model's answers": {
        "kind": "train", "model": "small", "dataset": "digits", "epochs": 30,
        "teacher": "digits@2", "temperature": 4.0, "alpha": 0.5,
    },
    "prune": {"kind": "prune", "model": "digits@2", "dataset": "digits", "method": "channel", "amount": 0.5,
              "round_to": 4, "finetune": {"epochs": 5, "lr": 0.02}},
    "prune, in steps, by the loss that a channel's going would cost": {
        "kind": "prune", "model": "digits@2", "dataset": "digits", "method": "channel", "amount": 0.7,
        "importance": "taylor", "steps": 4, "schedule": "gradual", "finetune": {"epochs": 8, "lr": 0.02},
    },
    "prune: what each layer could bear, and what would go": {
        "kind": "prune", "model": "digits@2", "dataset": "digits", "method": "channel", "amount": 0.5, "dry_run": True,
    },
    "share: convolutions in groups": {
        "kind": "share", "model": "digits@2", "dataset": "digits", "method": "grouped_conv", "groups": 2,
        "finetune": {"epochs": 5, "lr": 0.02},
    },
    "share: low-rank factors": {
        "kind": "share", "model": "digits@2", "dataset": "digits", "method": "low_rank", "energy": 0.95,
    },
    "quantize": {"kind": "quantize", "model": "digits@2", "dataset": "digits", "target": "openvino",
                 "calibration_samples": 300, "max_accuracy_drop": 0.01},
    "quantize, trained": {"kind": "quantize", "model": "digits@2", "dataset": "digits", "target": "onnxruntime",
                          "mode": "qat", "finetune": {"epochs": 3, "lr": 0.001}},
    "convert": {"kind": "convert", "model": "digits", "dataset": "digits", "target": "openvino", "max_batch": 64},
    "convert, for TensorRT": {
        "kind": "convert", "model": "digits", "dataset": "digits", "target": "tensorrt", "precision": "fp16",
        "max_batch": 64, "buckets": [1, 8, 64], "optimization_level": 4, "workspace_bytes": 2**31,
    },
    "evaluate": {"kind": "evaluate", "model": "digits@4", "dataset": "digits", "baseline": "digits@2"},
    "search": {
        "kind": "search", "model": "digits@1", "dataset": "digits", "sampler": "tpe", "trials": 20, "parallel": 2,
        "chain": [{"kind": "train", "epochs": 5}, {"kind": "prune", "method": "channel"}],
        "space": {"train.lr": {"low": 0.001, "high": 0.3, "log": True}, "prune.amount": [0.25, 0.5, 0.75]},
        "objectives": ["quality", "parameters"],
    },
    "search: a scikit-learn estimator": {
        "kind": "search", "model": "forest", "dataset": "digits", "estimator": "random_forest", "sampler": "grid",
        "cv": 3, "space": {"n_estimators": [100, 200, 300], "max_depth": [10, 20, 30]},
    },
    "optimize": {
        "kind": "optimize", "model": "digits@2", "dataset": "digits", "targets": ["openvino"], "objective": "latency",
        "max_accuracy_drop": 0.01, "trials": 12, "passes": ["prune", "quantize"],
    },
    "optimize: what it would try": {
        "kind": "optimize", "model": "digits@2", "dataset": "digits", "targets": ["openvino"], "dry_run": True,
    },
}  # fmt: skip
