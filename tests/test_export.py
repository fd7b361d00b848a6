"""A version for other programs: plain PEFT loads what the page gives, and the page gives no more than that."""

import io
import threading
import zipfile

import httpx
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from playground.models import adapters, export
from playground.models.export import Packing
from tests.sites import Site
from tests.test_engine import publish as publish_into
from tests.tiny import tiny_folder


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    site = Site(tiny_folder(tmp_path_factory.mktemp("model")), data_dir=tmp_path_factory.mktemp("data"))
    site.base, site.identity = site.engine.base, site.engine.identity
    yield site
    site.stop()


def get(site, path, **headers):
    return httpx.get(site.url + path, headers=headers)


def test_plain_peft_loads_what_the_page_gives(site, tmp_path):
    version = publish_into(site, 0.1)
    answer = get(site, f"/adapters/v{version}.zip")
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/zip"
    assert "attachment" in answer.headers["content-disposition"]
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        archive.extractall(tmp_path)
    [folder] = tmp_path.iterdir()
    assert sorted(file.name for file in folder.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    base = AutoModelForCausalLM.from_pretrained(site.settings.model, dtype=torch.float32)
    ids = torch.tensor([[1, 30, 31, 32, 40]])
    with torch.no_grad():
        plain = base(ids).logits
        theirs = PeftModel.from_pretrained(base, folder)(ids).logits
        path = site.settings.adapters_dir / f"v{version:04d}"
        ours = adapters.load(path, site.base, base_hash=site.identity["hash"])(ids).logits
    assert torch.allclose(theirs, ours, atol=1e-4)
    assert not torch.allclose(theirs, plain, atol=1e-2)
    assert get(site, f"/adapters/v{version}.zip").content == answer.content, "the zip is kept"


@pytest.mark.parametrize(
    "path",
    [
        "/adapters/v0.zip",
        "/adapters/v999.zip",
        "/adapters/v1.zip/",
        "/adapters/v-1.zip",
        "/adapters/v1e3.zip",
        "/adapters/v..%2f..%2fnudge.db.zip",
        "/adapters/../nudge.db",
        "/adapters/v0001/manifest.json",
    ],
)
def test_nothing_else_is_there(site, path):
    assert get(site, path).status_code == 404


def test_what_was_refused_withdrawn_or_tampered_with_is_not_given(site):
    tampered, withdrawn, rejected = (publish_into(site) for _ in range(3))
    next_one = publish_into(site)
    site.store.withdraw(withdrawn, site.store.annotator("admin"), "it leaks")
    with site.store.writing() as db:
        db.execute("update policy set status = 'rejected' where version = ?", [rejected])
    weights = site.settings.adapters_dir / f"v{tampered:04d}" / adapters.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    for version in (tampered, withdrawn, rejected):
        answer = get(site, f"/adapters/v{version}.zip", **{"accept-language": "zh-CN"})
        assert answer.status_code == 404 and "版本" in answer.text
    assert get(site, f"/adapters/v{next_one}.zip").status_code == 200


def test_one_is_packed_at_a_time(site, monkeypatch):
    version = publish_into(site)
    row = site.store.policy(version)
    begun, go_on = threading.Event(), threading.Event()
    read = adapters.read

    def slow(*arguments, **more):
        begun.set()
        assert go_on.wait(20)
        return read(*arguments, **more)

    monkeypatch.setattr(adapters, "read", slow)
    exports = site.settings.data_dir / "exports"
    first = threading.Thread(
        target=export.packed, args=(site.settings.adapters_dir, exports, row, site.identity["hash"])
    )
    first.start()
    assert begun.wait(20)
    try:
        with pytest.raises(Packing):
            export.packed(site.settings.adapters_dir, exports, row, site.identity["hash"])
        assert get(site, f"/adapters/v{version}.zip").status_code == 429
    finally:
        go_on.set()
        first.join(20)
    assert get(site, f"/adapters/v{version}.zip").status_code == 200
