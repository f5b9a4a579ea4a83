"""The state of a training between two epochs: what a later attempt needs to end with the very same weights."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from workers.context import Context

Weights = dict[str, torch.Tensor]
PERIOD_S = 2.0
SHARE = 0.05  # of the time, at most, goes into checkpoints


class Checkpoints:
    """Saves and loads model, optimizer, schedule and random states through the job's context."""

    def __init__(
        self,
        ctx: Context,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        order: torch.Generator,
        period_s: float = PERIOD_S,
    ) -> None:
        """period_s: seconds between two saves at least; 0: every epoch is saved, whatever it costs."""
        self._ctx, self._order, self._period = ctx, order, period_s
        self._parts: dict[str, Any] = {"model": module, "optimizer": optimizer, "schedule": schedule}
        self._due = time.monotonic()  # the first epoch is kept at once

    def save(self, done: dict[str, Any]) -> None:
        """Keeps the state with `done`, unless it did so a moment ago."""
        began = time.monotonic()
        if began < self._due:
            return
        state = {k: part.state_dict() for k, part in self._parts.items()}
        state |= {"done": done, "order": self._order.get_state(), "random": torch.get_rng_state()}
        if torch.cuda.is_available():
            state["random_cuda"] = torch.cuda.get_rng_state_all()
        path = self._ctx.scratch / "training.state"
        torch.save(state, path)
        self._ctx.checkpoint(path, done["epochs"])
        path.unlink(missing_ok=True)
        now = time.monotonic()
        self._due = now + (max(self._period, (now - began) / SHARE) if self._period else 0)

    def load(self) -> dict[str, Any] | None:
        """Puts back the newest state of an earlier attempt; returns its `done`. None: begin at the beginning."""
        found = self._ctx.last_checkpoint()
        if found is None:
            return None
        epoch, path = found
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self._parts["model"].load_state_dict(state["model"])
        except Exception as error:  # a torn or foreign file must not cost the job: epochs are lost, nothing else
            self._ctx.log(f"the checkpoint of epoch {epoch} cannot be read ({error}); training starts anew", "warning")
            return None
        self._parts["optimizer"].load_state_dict(state["optimizer"])
        self._parts["schedule"].load_state_dict(state["schedule"])
        self._order.set_state(state["order"])
        torch.set_rng_state(state["random"])
        if torch.cuda.is_available() and "random_cuda" in state:
            torch.cuda.set_rng_state_all(state["random_cuda"])
        done: dict[str, Any] = state["done"]
        return done
