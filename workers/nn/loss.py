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
from workers.nn.teacher import Teacher

LOOKED_AT = 4  # rows whose outputs tell what kind they are

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def loss_for(module: nn.Module, data: Data, plan: Training, device: str) -> Loss:
    """The loss asked for, after one look at a few rows' outputs. Cross entropy takes logits, log-probabilities and
    probabilities, as `distillation_for` does. Raises Unprocessable where it cannot be computed."""
    x, y = data.train.take(torch.arange(min(LOOKED_AT, len(data.train))))
    output = _look(module, x.to(device))
    if _wants_squares(plan, data):
        return _squares(output, y, data)
    if data.task == "classification":
        return _classes(output, y, data)
    if y.shape == output.shape:  # targets are probabilities of the classes
        log_of = _log_of(output)
        return lambda output, y: F.cross_entropy(log_of(output.float()), y)
    raise Unprocessable(
        f"cross entropy wants classes or one probability per output {list(output.shape[1:])}; "
        f"the targets of {data.ref} are {data.record.y_dtype} of shape {list(y.shape[1:])}",
        hint='say "loss": "mse"',
    )


def distillation_for(module: nn.Module, data: Data, plan: Training, device: str, teacher: Teacher) -> Loss:
    """The loss towards a teacher's answers, whose arguments are the network's output and those, both (N, C, …).

    Where classes are learnt: T²·KL(softmax(teacher ÷ T) ‖ softmax(student ÷ T)), averaged over all that is classified
    (Hinton, Vinyals and Dean 2015). Where values are: the mean square of the difference. Logits and log-probabilities
    need no telling apart, because softmax forgets what is added to a whole row: log_softmax(log_softmax(z)) is
    log_softmax(z), at every temperature. Probabilities are told by their sum, and their logarithm is taken.
    Raises Unprocessable, `teacher_mismatch`, where the two outputs differ in shape.
    """
    x, _ = data.train.take(torch.arange(min(LOOKED_AT, len(data.train))))
    x = x.to(device)
    output, taught = _look(module, x), teacher.look(x)
    if output.shape != taught.shape:
        raise Unprocessable(
            f"the teacher {teacher.ref} gives {list(taught.shape[1:])} per row, and the model {list(output.shape[1:])}",
            code="teacher_mismatch",
            hint="a teacher is a version of the same outputs",
        )
    if _wants_squares(plan, data):
        return lambda output, taught: F.mse_loss(output.float(), taught)
    ours, theirs, t = _log_of(output), _log_of(taught), plan.temperature

    def loss(output: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
        # A class that the teacher rules out, with minus infinity, must count nothing instead of 0·∞.
        wanted = F.log_softmax(theirs(taught).clamp_min(-1e30) / t, 1)
        found = F.log_softmax(ours(output.float()) / t, 1)
        return t * t * F.kl_div(found, wanted, reduction="none", log_target=True).sum(1).mean()

    return loss


def _log_of(output: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """What makes logits of such outputs: the logarithm where they are probabilities, else nothing."""
    probable = output.dim() > 1 and output.shape[1] > 1 and bool((output >= 0).all())
    if probable and bool(((output.float().sum(1) - 1).abs() < 1e-3).all()):
        return lambda output: output.clamp_min(1e-12).log()
    return lambda output: output


def _wants_squares(plan: Training, data: Data) -> bool:
    return plan.loss == "mse" or (plan.loss == "auto" and data.task == "regression")


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
    log_of = _log_of(output)
    return lambda output, y: F.cross_entropy(log_of(output.float()), y)


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
