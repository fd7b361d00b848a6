"""The owner's guidelines above the chat."""

import pytest

from app import main
from playground.people import guidelines
from playground.settings import SettingsError
from playground.ui import guidelines as fold
from playground.ui.quick_gradio import gradio as gr


def shown(path):
    """The values of the HTML components that the fold has."""
    with gr.Blocks() as page:
        fold.build(str(path))
    return [block.value for block in page.blocks.values() if isinstance(block, gr.HTML)]


def test_a_markdown_file_is_shown_as_safe_html(tmp_path):
    file = tmp_path / "guidelines.md"
    file.write_text(
        "\ufeff# Prefer\n\n- *short* replies\n\n<script>alert(1)</script> ![x](https://evil.example/x.png)\n"
    )
    [html] = shown(file)
    assert "<h1" in html and "<em>short</em>" in html
    assert "<script" not in html and "<img" not in html and "alert(1)" in html


@pytest.mark.parametrize("content", [None, ""])
def test_without_a_text_there_is_nothing(tmp_path, content):
    file = tmp_path / "guidelines.md"
    if content is not None:
        file.write_text(content)
    assert shown(file if content is not None else "") == []


def test_a_file_that_cannot_be_used_is_named_in_one_sentence(tmp_path):
    latin, long = tmp_path / "latin.md", tmp_path / "long.md"
    latin.write_bytes("é".encode("latin-1"))
    long.write_text("x" * (guidelines.LONGEST + 1))
    for path, why in (
        (tmp_path / "none.md", "No such file"),
        (tmp_path, "directory"),
        (latin, "UTF-8"),
        (long, "64 KB"),
    ):
        with pytest.raises(SettingsError, match=why):
            guidelines.read(str(path))


def test_a_wrong_path_ends_the_start_before_anything_is_loaded(tmp_path, capsys, monkeypatch):
    """It was told after the model had been loaded."""
    monkeypatch.setattr("app.serve", lambda *_: pytest.fail("the start goes on"))
    monkeypatch.setattr("app.signal.signal", lambda *_: None)
    assert main(["--people.guidelines", str(tmp_path / "none.md"), "--port", "0"]) == 1
    assert "none.md cannot be read: No such file" in capsys.readouterr().err
