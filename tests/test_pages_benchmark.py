"""The benchmark of the page with a small store: every gesture is made in Chromium and has its figure, on the screen and
at the server.
"""

from benchmarks import pages
from tests.browsing import MARKS
from tests.tiny import tiny_folder

pytestmark = MARKS


def test_every_gesture_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "IDLE_SECONDS", 3)
    settings = pages.PagesSettings(
        model=str(tiny_folder(tmp_path / "model")),
        device="cpu",
        dtype="float32",
        decode_format="float32",
        votes=200,
        rounds=25,
        repeats=1,
        _env_file=None,
    )
    rows = pages.measure(settings, log=lambda text: None)
    idle = [row for row in rows if "nothing changes" in row["what"] or row["what"].startswith("the same")]
    assert len(idle) == 3 and all(0 <= row["value"] < 1 for row in idle)  # in three seconds it may well cost nothing
    assert all(row["value"] is not None and row["value"] > 0 for row in rows if row not in idle)
    names = [row["what"] for row in rows]
    assert {f"{gesture}: click to painted" for gesture in pages.GESTURES} <= set(names)
    assert any("vote-b click" in name for name in names) and any("timeline input" in name for name in names)
    assert [row["bar"] for row in rows if row["what"] in ("first paint", "until the chat can be used")] == [
        "≤ 2",
        "≤ 2",
    ]
