"""Printing: what happens when drawing fails, hangs, or is asked for by many; what is kept."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from app.report import press
from app.report.press import Press
from app.settings import Settings

# Stand-ins for the drawing process: what it says depends on nothing but its stdin.
ECHO = "import sys; open(sys.argv[1], 'a').write('x'); sys.stdout.write('drawn ' + str(len(sys.stdin.read())))"
GATED = "import sys, pathlib, time\nwhile not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.01)\nprint('drawn')"


def given(number: int = 1) -> dict[str, Any]:
    curve = [{"epoch": i, "loss": 1.0 / (i + number)} for i in range(3)]
    return {"job": {"id": f"j{number}", "kind": "train", "spec": {}, "history": curve}}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data=tmp_path / "data")


async def test_the_same_page_is_drawn_once(settings: Settings, tmp_path: Path) -> None:
    drawings = tmp_path / "drawings"
    printing = Press(settings, command=("-c", ECHO, str(drawings)))
    first = await asyncio.gather(*(printing.printed(given()) for _ in range(5)))
    assert len(set(first)) == 1
    assert first[0].startswith("drawn")
    assert await printing.printed(given()) == first[0]
    assert drawings.read_text() == "x"
    await printing.printed(given(22))
    assert drawings.read_text() == "xx"


async def test_what_changed_is_drawn_again_and_the_oldest_is_forgotten(settings: Settings, tmp_path: Path) -> None:
    drawings = tmp_path / "drawings"
    printing = Press(settings, command=("-c", ECHO, str(drawings)))
    printing._kept.update({f"old{i}": "page" for i in range(press.KEPT)})
    await printing.printed(given())
    assert len(printing._kept) == press.KEPT
    assert "old0" not in printing._kept


@pytest.mark.parametrize(
    ("command", "seconds"),
    [
        (("-c", "raise SystemExit(3)"), 60.0),
        (("-c", "pass"), 60.0),
        (("-c", "import time; time.sleep(600)"), 0.2),
        (("-c", "import os; os.kill(os.getpid(), 9)"), 60.0),
    ],
)
async def test_a_page_there_is_whatever_becomes_of_the_drawing(
    settings: Settings, command: tuple[str, ...], seconds: float
) -> None:
    text = await Press(settings, seconds=seconds, command=command).printed(given())
    assert "could not be drawn" in text
    assert "<table>" in text
    assert "<svg" not in text


async def test_a_crowd_is_not_queued_up(settings: Settings, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    printing = Press(settings, command=("-c", GATED, str(gate)))
    waiting = [asyncio.create_task(printing.printed(given(i + 1))) for i in range(press.MOST_WAITING)]
    await asyncio.sleep(0)
    late = await printing.printed(given(99))
    assert "many reports are" in late
    assert not any(task.done() for task in waiting)
    gate.touch()
    assert set(await asyncio.gather(*waiting)) == {"drawn\n"}


async def test_who_goes_away_leaves_it_to_the_others(settings: Settings, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    printing = Press(settings, command=("-c", GATED, str(gate)))
    first, second = (asyncio.create_task(printing.printed(given())) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    gate.touch()
    assert await second == "drawn\n"


async def test_closing_ends_what_is_drawn(settings: Settings, tmp_path: Path) -> None:
    printing = Press(settings, command=("-c", GATED, str(tmp_path / "never")))
    task = asyncio.create_task(printing.printed(given()))
    while not printing._printing:
        await asyncio.sleep(0.01)
    await printing.close()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_data_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """matplotlib finds another place; the page is drawn all the same."""
    (tmp_path / "data").write_text("a file, where a folder should be")
    text = await Press(Settings(data=tmp_path / "data")).printed(given())
    assert "<svg" in text
