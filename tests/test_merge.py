"""A version merged into its base model: the folder that is written is a plain model that says the same."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from playground.models import adapter_reading, adapters, loading
from playground.settings import Settings
from playground.store import Store
from tests.test_engine import publish as publish_into
from tests.tiny import tiny_folder
from training import merge


@pytest.fixture
def site(tmp_path):
    folder = tiny_folder(tmp_path / "model")
    settings = Settings(model=str(folder), data_dir=tmp_path / "data", dtype="float32", threads=1, _env_file=None)
    base = loading.load_trunk(settings)
    store = Store(settings.database)
    return SimpleNamespace(
        store=store, settings=settings, base=base, identity=loading.base_identity(base, settings), folder=folder
    )


def run(site, version, out):
    flags = ["--model", str(site.folder), "--data-dir", str(site.settings.data_dir)]
    merge.main([*flags, "--version", str(version), "--out", str(out)])


def test_the_merged_folder_is_a_plain_model_that_says_the_same(site, tmp_path, capsys):
    version = publish_into(site, 0.1)
    run(site, version, tmp_path / "out")
    assert f"v{version} is in" in capsys.readouterr().out
    ids = torch.tensor([[1, 30, 31, 32, 40]])
    path = site.settings.adapters_dir / f"v{version:04d}"
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(ids).logits.float()
        ours = adapters.load(path, site.base, base_hash=site.identity["hash"])(ids).logits
        plain = site.base(ids).logits
    assert torch.allclose(theirs, ours, atol=1e-3) and not torch.allclose(theirs, plain, atol=1e-2)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith('---\nlibrary_name: "transformers"') and f"# Version {version}" in card


def test_what_cannot_be_merged_is_said_in_words(site, tmp_path):
    with pytest.raises(SystemExit, match="no version v9"):
        run(site, 9, tmp_path / "out")
    version = publish_into(site, 0.1)
    with pytest.raises(SystemExit, match="is not empty"):
        run(site, version, site.folder)
    weights = site.settings.adapters_dir / f"v{version:04d}" / adapter_reading.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(SystemExit, match="does not match the hash"):
        run(site, version, tmp_path / "out")
    assert not (tmp_path / "out").exists()
