"""The losses of the menu, and the check that a network's outputs and a data set's targets belong together."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from app.domain.specs import Training
from app.errors import Unprocessable
from workers.nn.data import Data
from workers.nn.predict import first

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def loss_for(module: nn.Module, data: Data, plan: Training, device: str) -> Loss:
    """The loss asked for, after one look at two rows' outputs. Raises Unprocessable where it cannot be computed."""
    x, y = data.train.take(torch.arange(min(2, len(data.train))))
    output = _look(module, x.to(device))
    if plan.loss == "mse" or (plan.loss == "auto" and data.task == "regression"):
        return _squares(output, y, data)
    if data.task == "classification":
        return _classes(output, y, data)
    if y.shape == output.shape:  # targets are probabilities of the classes
        return lambda output, y: F.cross_entropy(output.float(), y)
    raise Unprocessable(
        f"cross entropy wants classes or one probability per output {list(output.shape[1:])}; "
        f"the targets of {data.ref} are {data.record.y_dtype} of shape {list(y.shape[1:])}",
        hint='say "loss": "mse"',
    )


def _classes(output: torch.Tensor, y: torch.Tensor, data: Data) -> Loss:
    if output.dim() != y.dim() + 1 or output.shape[2:] != y.shape[1:]:
        raise Unprocessable(
            f"cross entropy wants one output per class for each target {list(y.shape[1:])}; "
            f"the model gives {list(output.shape[1:])} per row",
            hint='a model with a single output can be trained with "loss": "mse"',
        )
    classes = data.record.classes or int(data.train.labels().max()) + 1
    if classes > output.shape[1]:
        raise Unprocessable(
            f"the data set {data.ref} has {classes} classes; the model has {output.shape[1]} outputs",
            hint="upload the architecture with as many outputs as there are classes",
        )
    return lambda output, y: F.cross_entropy(output.float(), y)


def _squares(output: torch.Tensor, y: torch.Tensor, data: Data) -> Loss:
    if not y.is_floating_point() and output.dim() == y.dim() + 1 and output.shape[1] > 1:
        width = output.shape[1]
        return lambda output, y: F.mse_loss(output.float(), F.one_hot(y, width).float())
    if output.numel() != y.numel():
        raise Unprocessable(
            f"the model gives {list(output.shape[1:])} per row; a target of {data.ref} is {list(y.shape[1:])}"
        )
    return lambda output, y: F.mse_loss(output.float(), y.to(torch.float32).reshape(output.shape))


def _look(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    module.eval()
    try:
        with torch.no_grad():
            return first(module(x))
    except Exception as error:
        raise Unprocessable(
            f"the model does not run on rows of shape {list(x.shape[1:])}: {error}",
            hint="the data set must be in the model's own layout",
        ) from error
