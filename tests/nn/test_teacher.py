"""Learning from a teacher: the loss, in whatever form answers come; answers kept and aligned; resuming; refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from listening import Listener, made
from torch import nn
from torch.nn import functional as F

from app.domain.specs import Training
from app.errors import Unprocessable
from workers.nn.data import Data, Rows
from workers.nn.fit import fit
from workers.nn.loss import distillation_for
from workers.nn.measure import between_steps
from workers.nn.predict import eager
from workers.nn.quality import answers
from workers.nn.teacher import Teacher


def network(seed: int = 0, *last: nn.Module) -> nn.Sequential:
    torch.manual_seed(seed)
    body = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3)]
    return nn.Sequential(*body, nn.Linear(128, 3), *last).eval()


def teacher_of(module: nn.Module, key: str = "k", runtime: bool = False) -> Teacher:
    """runtime: as an engine is one, which is asked once for every row."""
    return Teacher("t@1", module, lambda: None, key, None if runtime else module.eval())


class Whole(Listener):
    """One that takes whatever progress is told, and remembers phases."""

    phases: list[str | None]

    def progress(self, done: float, total: float | None = None, unit: str = "", phase: str | None = None) -> None:
        super().progress(done, total, unit, phase)
        self.phases = [*getattr(self, "phases", []), phase]


FORMS: dict[str, tuple[nn.Module, ...]] = {
    "logits": (),
    "log-probabilities": (nn.LogSoftmax(1),),
    "probabilities": (nn.Softmax(1),),
}


@pytest.mark.parametrize("student", FORMS)
@pytest.mark.parametrize("taught", FORMS)
def test_the_loss_is_hintons_whatever_form_the_answers_have(bands: Data, student: str, taught: str) -> None:
    ours, theirs = network(1, *FORMS[student]), network(2, *FORMS[taught])
    loss_of = distillation_for(ours, bands, Training(temperature=3), "cpu", teacher_of(theirs))
    x, _ = bands.train.take(torch.arange(20))
    found = loss_of(ours(x), theirs(x))
    p, q = F.softmax(network(2)(x) / 3, 1), F.softmax(network(1)(x) / 3, 1)
    assert found.item() == pytest.approx(9 * (p * (p / q).log()).sum(1).mean().item(), rel=1e-4)
    assert loss_of(network(2, *FORMS[student])(x), theirs(x)).item() == pytest.approx(0, abs=1e-5)


def test_every_place_of_a_dense_output_counts_the_same(tmp_path: Path, listener: Listener) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 2, 5, 6)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 0)
    data = made(tmp_path / "dense", x, y, (30, 35))
    torch.manual_seed(0)
    ours, theirs = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(2, 3, 1)
    loss_of = distillation_for(ours, data, Training(temperature=2), "cpu", teacher_of(theirs))
    a, b = ours(torch.from_numpy(x)), theirs(torch.from_numpy(x))

    def rows(t: torch.Tensor) -> torch.Tensor:  # (N, C, H, W) → one row per place
        return t.movedim(1, -1).reshape(-1, 3)

    flat = F.kl_div(F.log_softmax(rows(a) / 2, 1), F.softmax(rows(b) / 2, 1), reduction="batchmean") * 4
    assert loss_of(a, b).item() == pytest.approx(flat.item(), rel=1e-5)
    done = fit(ours, data, Training(epochs=3, lr=0.05), listener, teacher=teacher_of(theirs))
    assert done.final_distillation_loss is not None
    assert done.final_distillation_loss < listener.rows[0]["distillation_loss"]


def test_a_class_that_the_teacher_rules_out_counts_nothing(bands: Data) -> None:
    ours, theirs = network(1), nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with torch.no_grad():
        theirs[1].bias[2] = -math.inf
    loss_of = distillation_for(ours, bands, Training(), "cpu", teacher_of(theirs))
    x, _ = bands.train.take(torch.arange(8))
    found = loss_of(ours(x), theirs(x))
    assert math.isfinite(found.item())


def test_with_the_whole_loss_the_student_becomes_the_teacher(tmp_path: Path, listener: Listener) -> None:
    """Regression; the targets are noise, and count nothing."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((200, 3)).astype(np.float32), rng.standard_normal((200, 2)).astype(np.float32)
    data = made(tmp_path / "r", x, y, (160, 180))
    torch.manual_seed(0)
    student, teacher = nn.Linear(3, 2), nn.Linear(3, 2)
    plan = Training(epochs=30, batch_size=16, lr=0.1, alpha=1, loss="auto")
    fit(student, data, plan, listener, teacher=teacher_of(teacher))
    assert torch.allclose(student.weight, teacher.weight, atol=1e-2)
    assert listener.rows[-1]["distillation_loss"] < 1e-3
    assert listener.rows[-1]["loss"] > 0.5


def test_the_figures_are_told_apart_and_the_summary_names_the_teacher(bands: Data, listener: Listener) -> None:
    plan = Training(epochs=2, batch_size=16, lr=0.01, temperature=2, alpha=0.3)
    done = fit(network(), bands, plan, listener, teacher=teacher_of(network(7)))
    assert set(listener.rows[0]) == {"epoch", "loss", "distillation_loss", "val_accuracy", "lr", "seconds"}
    summary = done.summary()
    assert (summary["teacher"], summary["temperature"], summary["alpha"]) == ("t@1", 2, 0.3)
    assert summary["final_loss"] == listener.rows[-1]["loss"]
    assert summary["final_distillation_loss"] == listener.rows[-1]["distillation_loss"]
    listener.kept.clear()
    assert fit(network(), bands, plan, listener).summary()["teacher"] is None


def test_a_good_teacher_mends_wrong_labels(tmp_path: Path, bands: Data) -> None:
    teacher = network(3)
    fit(teacher, bands, Training(epochs=15, batch_size=16, lr=0.05), Listener(tmp_path / "t"))
    x, y = bands.train.take(torch.arange(97))
    draw = torch.Generator().manual_seed(0)
    y = torch.where(torch.rand(97, generator=draw) < 0.6, torch.randint(0, 3, (97,), generator=draw), y)
    noisy = Data(bands.record, Rows(x, y), bands.val, bands.test)
    right = []
    for alpha in (0.0, 0.9):
        student = network(5)
        plan = Training(epochs=10, batch_size=16, lr=0.05, alpha=alpha)
        heard = Listener(tmp_path / str(alpha))
        fit(student, noisy, plan, heard, teacher=teacher_of(teacher) if alpha else None)
        right.append(answers(eager(student), noisy.test, 64).value())
    assert right[1] > right[0] + 0.05


def test_answers_kept_for_every_row_stay_with_their_rows(bands: Data, listener: Listener) -> None:
    module = network(4)
    teacher = teacher_of(module, runtime=True)
    with between_steps() as turn:
        teacher.prepare(bands, Training(epochs=1), listener, turn)
    assert teacher.known is not None
    rows = torch.randperm(len(bands.train))
    x, _ = bands.train.take(rows)
    assert torch.allclose(teacher.answers(x, rows), module(x), atol=1e-5)


def test_a_network_is_asked_at_every_step_where_once_is_all_there_is(bands: Data, listener: Listener) -> None:
    teacher = teacher_of(network(4))
    with between_steps() as turn:
        teacher.prepare(bands, Training(epochs=1), listener, turn)
        assert teacher.known is None
        teacher.prepare(bands, Training(epochs=2), listener, turn)
    assert teacher.known is not None


def test_a_second_training_of_a_job_asks_no_more(bands: Data, tmp_path: Path) -> None:
    asked: list[int] = []
    module = network(4)

    def ask(x: torch.Tensor) -> torch.Tensor:
        asked.append(len(x))
        return module(x)

    heard = Whole(tmp_path / "s")
    for _ in range(2):
        fit(network(), bands, Training(epochs=2), heard, teacher=Teacher("t@1", ask, lambda: None, "same"))
        heard.kept.clear()
    assert asked.count(len(bands.train)) == 1
    assert heard.phases.count("asking the teacher t@1") == 1
    asked.clear()
    fit(network(), bands, Training(epochs=2), heard, teacher=Teacher("t@1", ask, lambda: None, "other"))
    assert asked.count(len(bands.train)) == 1


class Turn:
    """Says whether someone is within it."""

    within = False

    def __enter__(self) -> None:
        self.within = True

    def __exit__(self, *_: object) -> None:
        self.within = False


def test_the_teacher_is_asked_between_the_measurements_of_others(bands: Data, listener: Listener) -> None:
    turn, seen = Turn(), []

    def ask(x: torch.Tensor) -> torch.Tensor:
        seen.append((len(x), turn.within))
        return network(4)(x)

    Teacher("t@1", ask, lambda: None, "k").prepare(bands, Training(epochs=2), listener, turn)
    assert (len(bands.train), True) in seen
    assert all(within for n, within in seen if n > 1)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("kept", [True, False])
def test_a_distillation_that_was_killed_ends_with_the_same_weights(
    bands: Data, tmp_path: Path, optimizer: str, kept: bool
) -> None:
    plan = Training(epochs=4, batch_size=16, lr=0.01, optimizer=optimizer, early_stopping=3)

    def teacher() -> Teacher:
        torch.rand(5)  # opening one draws numbers
        found = teacher_of(network(6))
        if not kept:  # too many answers to keep: the network is asked at every step
            found.prepare = lambda *_, **__: None  # type: ignore[method-assign]
        return found

    whole = network()
    fit(whole, bands, plan, Listener(tmp_path / "a"), teacher=teacher(), checkpoint_s=0)
    killed = Listener(tmp_path / "b", dies_after=2)
    with pytest.raises(KeyboardInterrupt):
        fit(network(), bands, plan, killed, teacher=teacher(), checkpoint_s=0)
    killed.dies_after = None
    for left in killed.scratch.glob("teacher-*"):
        left.unlink()  # another attempt has another scratch folder
    resumed = network(99)
    done = fit(resumed, bands, plan, killed, teacher=teacher(), checkpoint_s=0)
    assert done.resumed_at == 2
    assert done.teacher == "t@1"
    same = zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)


def test_masks_and_early_stopping_hold_with_a_teacher_too(bands: Data, listener: Listener) -> None:
    module = network()
    weight = module[5].weight
    mask = torch.rand_like(weight) > 0.5
    with torch.no_grad():
        weight.mul_(mask)
    plan = Training(epochs=50, lr=0.05, schedule="constant", early_stopping=3)
    done = fit(module, bands, plan, listener, masks={"5.weight": mask}, teacher=teacher_of(network(6)))
    assert not module[5].weight[~mask].any()
    assert done.stopped_early
    assert answers(eager(module), bands.val, 64).value() == done.best


@pytest.mark.parametrize("where", ["first", "late", "late, asked at every step"])
def test_a_teacher_that_answers_with_nan_is_named(bands: Data, listener: Listener, where: str) -> None:
    module = network(6)
    x, _ = bands.train.take(torch.tensor([0 if where == "first" else 90]))

    def ask(rows: torch.Tensor) -> torch.Tensor:
        found = module(rows).detach().clone()
        found[(rows == x).flatten(1).all(1)] = math.nan
        return found

    plan = Training(epochs=1 if "step" in where else 3)
    with pytest.raises(Unprocessable, match=r"t@1 answers .* NaN") as failed:
        fit(network(), bands, plan, listener, teacher=Teacher("t@1", ask, lambda: None, "k", network=module))
    assert failed.value.code == "teacher_not_finite"
    assert failed.value.hint


def wider(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1)[:, :4]


def broken(x: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("mat1 and mat2")


@pytest.mark.parametrize(("ask", "told"), [(wider, r"gives \[4\] per row, and the model \[3\]"), (broken, "mat1")])
def test_a_teacher_of_other_outputs_or_inputs_is_refused(
    bands: Data, listener: Listener, ask: Callable[[torch.Tensor], torch.Tensor], told: str
) -> None:
    with pytest.raises(Unprocessable, match=told) as failed:
        fit(network(), bands, Training(), listener, teacher=Teacher("t@1", ask, lambda: None, "k"))
    assert failed.value.code == "teacher_mismatch"
    assert listener.rows == []


def test_bf16_serves_student_and_teacher(bands: Data, listener: Listener) -> None:
    fit(network(), bands, Training(epochs=2, amp="bf16"), listener, teacher=teacher_of(network(6)))
    assert np.isfinite(listener.rows[-1]["distillation_loss"])
