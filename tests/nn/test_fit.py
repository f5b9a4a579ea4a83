"""The training loop: it learns, resumes to the same weights, stops early, keeps zeros, says when it diverges."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from listening import Listener, made
from torch import fx, nn
from torch.nn import functional as F

from app.domain.specs import Training
from app.errors import Unprocessable
from workers.nn.data import Data
from workers.nn.finetune import bounded, worsened
from workers.nn.fit import fit
from workers.nn.predict import eager
from workers.nn.quality import answers


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(128, 3)
    )


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_it_learns_and_tells_every_epoch(bands: Data, listener: Listener) -> None:
    module = network()
    done = fit(module, bands, Training(epochs=6, batch_size=16, lr=0.05), listener)
    assert answers(eager(module), bands.test, 64).value() > 0.8
    assert [row["epoch"] for row in listener.rows] == [1, 2, 3, 4, 5, 6]
    assert set(listener.rows[0]) == {"epoch", "loss", "val_accuracy", "lr", "seconds"}
    assert listener.rows[-1]["loss"] < listener.rows[0]["loss"]
    assert done.epochs == 6


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("schedule", ["onecycle", "cosine", "constant", "step"])
def test_a_training_that_was_killed_ends_with_the_same_weights(
    bands: Data, tmp_path: Path, optimizer: str, schedule: str
) -> None:
    plan = Training(epochs=5, batch_size=16, lr=0.01, optimizer=optimizer, schedule=schedule, early_stopping=4)
    whole = network()
    fit(whole, bands, plan, Listener(tmp_path / "a"), checkpoint_s=0)
    killed = Listener(tmp_path / "b", dies_after=2)
    with pytest.raises(KeyboardInterrupt):
        fit(network(), bands, plan, killed, checkpoint_s=0)
    killed.dies_after = None
    resumed = network(seed=99)
    torch.rand(17)  # whatever the random state is when the next attempt begins
    done = fit(resumed, bands, plan, killed, checkpoint_s=0)
    assert done.resumed_at == 2
    assert equal(whole, resumed)
    assert [row["epoch"] for row in killed.rows] == [1, 2, 3, 4, 5]


def test_a_torn_checkpoint_costs_epochs_and_nothing_else(bands: Data, listener: Listener) -> None:
    listener.kept = [(3, b"torn")]
    assert fit(network(), bands, Training(epochs=1), listener).resumed_at is None
    assert "starts anew" in listener.lines[0]


def test_the_schedule_rises_to_lr_and_falls(bands: Data, listener: Listener) -> None:
    fit(network(), bands, Training(epochs=10, lr=0.05), listener)
    rates = [row["lr"] for row in listener.rows]
    assert max(rates) == pytest.approx(0.05, rel=0.1)
    assert rates[-1] < 0.001


def test_early_stopping_gives_back_the_best_weights(bands: Data, listener: Listener) -> None:
    module = network()
    done = fit(module, bands, Training(epochs=50, lr=0.05, schedule="constant", early_stopping=3), listener)
    assert done.stopped_early
    assert done.epochs == done.best_epoch + 3 == len(listener.rows)
    assert (
        answers(eager(module), bands.val, 64).value() == done.best == listener.rows[done.best_epoch - 1]["val_accuracy"]
    )


def test_what_training_made_worse_is_told_or_given_back(bands: Data, listener: Listener) -> None:
    module = network()
    done = fit(module, bands, Training(epochs=8, lr=0.05), listener)
    assert (done.before, worsened(done)) == (None, None)  # a training of its own
    wrong = replace(bands, train=replace(bands.train, y=(bands.train.y + 1) % 3))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    for patience in (3, None):
        plan = Training(epochs=4, lr=0.1, batch_size=8, schedule="constant", early_stopping=patience)
        listener.kept.clear()  # another job
        found = fit(module, wrong, plan, listener, start_counts=True)
        told = found.summary()
        assert told["validation"] == {"before": found.before, "after": answers(eager(module), bands.val, 64).value()}
        if patience:
            assert (told["best_epoch"], found.after) == (0, found.before)
            assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
            assert "whose weights were kept" in (worsened(found) or "")
        else:
            assert found.after is not None
            assert found.before is not None
            assert found.after < found.before
            assert "made it worse" in (worsened(found) or "")


def test_masked_weights_stay_zero(bands: Data, listener: Listener) -> None:
    module = network()
    weight = module[5].weight
    mask = torch.rand_like(weight) > 0.5
    with torch.no_grad():
        weight.mul_(mask)
    fit(module, bands, Training(epochs=2, lr=0.05, weight_decay=0.01), listener, masks={"5.weight": mask})
    assert not module[5].weight[~mask].any()
    assert module[5].weight[mask].all()


def test_a_loss_that_is_no_number_fails_with_a_hint(bands: Data, listener: Listener) -> None:
    with pytest.raises(Unprocessable) as failed:
        fit(network(), bands, Training(epochs=20, lr=100, schedule="constant", loss="mse"), listener)
    assert failed.value.code == "diverged"
    assert "lr" in (failed.value.hint or "")


def test_regression_and_its_figure(tmp_path: Path, listener: Listener) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 3)).astype(np.float32)
    data = made(tmp_path / "r", x, x @ np.array([1, -2, 0.5], np.float32), (120, 160))
    fit(nn.Linear(3, 1), data, Training(epochs=20, batch_size=16, lr=0.1), listener)
    assert listener.rows[-1]["val_r2"] > 0.95


def test_outputs_that_do_not_fit_the_classes_are_refused(bands: Data, listener: Listener) -> None:
    with pytest.raises(Unprocessable, match="3 classes; the model has 2 outputs"):
        fit(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), bands, Training(), listener)
    with pytest.raises(Unprocessable, match="does not run"):
        fit(nn.Linear(5, 3), bands, Training(), listener)


def test_bf16_trains_on_a_cpu_too(bands: Data, listener: Listener) -> None:
    fit(network(), bands, Training(epochs=2, amp="bf16"), listener)
    assert np.isfinite(listener.rows[-1]["loss"])


def test_weights_come_back_in_rows(bands: Data, listener: Listener) -> None:
    """Pictures are trained on with the channels last; what comes after knows nothing of that."""
    module = network()
    strides = [t.stride() for t in module.state_dict().values()]
    fit(module, bands, Training(epochs=1), listener)
    assert [t.stride() for t in module.state_dict().values()] == strides


class Viewed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(F.max_pool2d(self.conv(x), 2).view(-1, 32))


def test_a_view_that_forbids_channels_last_leaves_nothing_in_the_log(
    bands: Data, listener: Listener, capsys: pytest.CaptureFixture[str]
) -> None:
    done = fit(fx.symbolic_trace(Viewed()), bands, Training(epochs=1, batch_size=16), listener)
    assert done.epochs == 1
    assert "Traceback" not in capsys.readouterr().err


def test_the_steps_of_a_bounded_training_are_no_longer_than_that(bands: Data, listener: Listener) -> None:
    module = network()
    before = torch.cat([p.detach().flatten().clone() for p in module.parameters()])
    plan = Training(epochs=1, batch_size=len(bands.train), lr=1.0, momentum=0, schedule="constant", clip_norm=0.01)
    fit(module, bands, plan, listener)
    moved = torch.cat([p.detach().flatten() for p in module.parameters()]) - before
    assert float(moved.norm()) == pytest.approx(0.01, rel=1e-3)


def test_what_lost_weights_or_is_taught_learns_in_bounded_steps(bands: Data) -> None:
    assert bounded(Training(), bands).clip_norm == 1.0
    assert bounded(Training(clip_norm=5.0), bands).clip_norm == 5.0
    assert bounded(Training(loss="mse"), bands).clip_norm is None
