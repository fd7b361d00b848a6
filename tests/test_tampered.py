"""Versions that somebody has changed on disk: each is rejected in words, at start-up and while the app runs, and never
more than that version.
"""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import save_file

from playground.models import adapters, loading, lora
from playground.models.adapter_reading import CONFIG, MANIFEST, WEIGHTS
from playground.serving import versions
from playground.serving.engine import Engine
from playground.serving.versions import Policy
from playground.settings import Settings
from playground.store import Store
from tests.tiny import tiny_folder


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """One engine for all tests, whose threads do not run: to build another for each takes half a minute in all."""
    torch.set_num_threads(1)  # a team of threads on a busy machine waits for itself
    root = tmp_path_factory.mktemp("tampered")
    settings = Settings(
        model=str(tiny_folder(root / "model")),
        data_dir=root / "data",
        device="cpu",
        dtype="float32",
        threads=1,
        decode_format="float32",
        _env_file=None,
    )
    return Engine(Store(), settings, loading.load_trunk(settings), loading.load_tokenizer(settings))


@pytest.fixture(scope="module")
def tensors(app):
    """Of a small update on all linear layers."""
    parameters = lora.lora_parameters(
        lora.with_lora(lora.tied_copy(app.base), rank=4, alpha=8, targets=lora.linear_targets(app.base))
    )
    noise = torch.Generator().manual_seed(1)
    return {name: 0.05 * torch.randn(p.shape, generator=noise) for name, p in parameters.items()}


@pytest.fixture
def site(app, tmp_path):
    """The engine over an empty store, as a new process."""
    at_store(app, Store(), app.settings.with_values(data_dir=tmp_path))
    return restarted(app)


@pytest.fixture(scope="module")
def good(app, tensors, tmp_path_factory):
    """The engine with a good version live, which all tests that reject another one share; and that version's Policy."""
    at_store(app, Store(), app.settings.with_values(data_dir=tmp_path_factory.mktemp("good")))
    publish(app, tensors)
    assert app.versions.follow_store() and app.live.version == 1
    return app.store, app.settings, app.live


def at_store(app, store, settings):
    """Let the engine follow another store."""
    app.store, app.settings = store, settings
    app.versions.store, app.versions.settings = store, settings


def restarted(app, *ready):
    """Nothing answers but the base, as in a new process; the Policies `ready` need not be built again, which takes
    time.
    """
    base = Policy(0, app.base, app.live.forward.for_model(app.base))
    app.versions.live = base
    app.versions._resident = {policy.version: policy for policy in (base, *ready)}
    return app


def publish(site, tensors):
    """A version of a round, as the worker publishes it; its number."""
    store, targets = site.store, lora.linear_targets(site.base)
    store.request_round()
    round_id = store.take_round("worker", lease_seconds=30)["id"]
    parent = store.live_policy()["version"]
    version = store.add_policy(round_id, "worker", parent=parent)
    moved = {name: tensor + version / 1000 for name, tensor in tensors.items()}
    path, sha256 = adapters.write(
        site.settings.adapters_dir,
        version,
        moved,
        rank=4,
        alpha=8,
        targets=targets,
        base=site.identity,
        parent=parent,
        round_id=round_id,
        scores={},
    )
    store.publish(round_id, "worker", version, path, sha256, {})
    return version


# -- what may be done to a folder


def manifest_with(**changes):
    def change(folder):
        manifest = json.loads((folder / MANIFEST).read_text())
        (folder / MANIFEST).write_text(json.dumps({**manifest, **changes}))

    return change


def manifest_of(text):
    return lambda folder: (folder / MANIFEST).write_text(text)


def resigned(**config):
    """The config says something else, and the manifest has its hash."""

    def change(folder):
        (folder / CONFIG).write_text(json.dumps({**json.loads((folder / CONFIG).read_text()), **config}))
        manifest = json.loads((folder / MANIFEST).read_text())
        manifest["files"][CONFIG]["sha256"] = adapters._sha256(folder / CONFIG)
        (folder / MANIFEST).write_text(json.dumps(manifest))

    return change


def in_both(**changes):
    """Manifest and config agree on something that is not what was trained."""

    def change(folder):
        names = {"rank": "r", "alpha": "lora_alpha", "targets": "target_modules"}
        resigned(**{names[name]: value for name, value in changes.items()})(folder)
        manifest_with(**changes)(folder)

    return change


def is_folder(name):
    def change(folder):
        (folder / name).unlink()
        (folder / name).mkdir()

    return change


def is_link(name):
    def change(folder):
        (folder / name).rename(folder.parent / name)
        (folder / name).symlink_to(folder.parent / name)

    return change


def is_pipe(folder):
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


def whole_is_link(folder):
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to(folder.with_name("elsewhere"))


def other_weights(folder):
    tensors = {
        name: torch.zeros(shape)
        for name, shape in json.loads((folder / MANIFEST).read_text())["files"][WEIGHTS]["shapes"].items()
    }
    save_file(tensors, folder / WEIGHTS)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][WEIGHTS]["sha256"] = adapters._sha256(folder / WEIGHTS)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def pickled(folder):
    (folder / WEIGHTS).write_bytes(b"\x80\x04 a pickle")


def enormous(folder):
    os.truncate(folder / WEIGHTS, 1 << 40)


TAMPERED = {
    "rank 0": manifest_with(rank=0),
    "rank of a thousand million": manifest_with(rank=10**9),
    "rank true": manifest_with(rank=True),
    "another rank in both": in_both(rank=3),
    "alpha infinite": manifest_with(alpha=float("inf")),
    "alpha NaN": manifest_with(alpha=float("nan")),
    "alpha text": manifest_with(alpha="8"),
    "another alpha": manifest_with(alpha=800),
    "targets text": manifest_with(targets="q_proj"),
    "targets that are no linear layers": in_both(targets=["embed_tokens", "norm"]),
    "no targets": manifest_with(targets=[]),
    "targets a pattern": in_both(targets=[".*"]),
    "config another": resigned(r=3),
    "files a list": manifest_with(files=[1]),
    "base text": manifest_with(base="tiny"),
    "nested a million deep": manifest_of("[" * 10**6 + "]" * 10**6),
    "nested objects": manifest_of('{"a":' * 10**5 + "1" + "}" * 10**5),
    "a number of 5000 digits": manifest_of('{"rank": ' + "9" * 5000 + "}"),
    "null": manifest_of("null"),
    "no text": manifest_of("\x00\xff"),
    "manifest a folder": is_folder(MANIFEST),
    "weights a folder": is_folder(WEIGHTS),
    "manifest a link": is_link(MANIFEST),
    "weights a link": is_link(WEIGHTS),
    "weights a pipe": is_pipe,
    "the folder a link": whole_is_link,
    "one file more": lambda folder: (folder / "adapter_model.bin").write_bytes(b"x"),
    "other weights": other_weights,
    "weights a pickle": pickled,
    "weights enormous": enormous,
    "nothing left": shutil.rmtree,
}


@pytest.mark.parametrize("row", ["whole", "weights"], ids=["published now", "published before the manifest was hashed"])
@pytest.mark.parametrize("name", TAMPERED)
def test_a_tampered_version_is_rejected_in_words_while_the_app_runs_and_at_its_start(
    app, good, tensors, name, row, caplog
):
    """TypeError, ValueError, RuntimeError and RecursionError from a manifest, which no hash covered, stopped
    the app.
    """
    store, settings, policy = good
    at_store(app, store, settings)
    app.versions.live = policy
    adapters_dir = app.settings.adapters_dir
    for moment in ("while it runs", "at its start"):
        bad = publish(app, tensors)
        folder = adapters_dir / f"v{bad:04d}"
        if row == "weights":
            manifest = json.loads((folder / MANIFEST).read_text())
            with app.store.writing() as db:
                db["policy"].update(bad, {"sha256": manifest["files"][WEIGHTS]["sha256"]})
        TAMPERED[name](folder)
        if moment == "at its start":
            restarted(app, policy)
        assert app.versions.follow_store() and app.live.version == policy.version == app.store.live_policy()["version"]
        found = app.store.policy(bad)
        assert found["status"] == "rejected" and 10 < len(found["reason"]) < 900
        assert str(app.settings.data_dir) not in found["reason"]
        for moved in (MANIFEST, WEIGHTS, "elsewhere"):  # out of the way of the next one
            if (path := adapters_dir / moved).exists():
                path.rename(f"{path} {bad}")
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    "change",
    [manifest_with(alpha=16), manifest_with(rank=4, note="x"), manifest_with(scores={"gain": 99}), in_both(alpha=16)],
)
def test_the_hash_covers_the_whole_version(site, tensors, change):
    bad = publish(site, tensors)
    change(site.settings.adapters_dir / f"v{bad:04d}")
    assert site.versions.follow_store() and site.live.version == 0
    assert "not the version that was published" in site.store.policy(bad)["reason"]


def test_a_version_that_was_published_when_the_hash_was_that_of_the_weights_still_loads(site, tensors):
    old = publish(site, tensors)
    manifest = json.loads((site.settings.adapters_dir / f"v{old:04d}" / MANIFEST).read_text())
    with site.store.writing() as db:
        db["policy"].update(old, {"sha256": manifest["files"][WEIGHTS]["sha256"]})
    assert site.versions.follow_store() and site.live.version == old


@pytest.mark.parametrize(
    "error", [RuntimeError("out of memory"), RecursionError("too deep"), MemoryError(), TypeError("x"), OSError("disk")]
)
def test_whatever_a_version_raises_rejects_that_version(site, tensors, error, monkeypatch):
    bad = publish(site, tensors)

    def broken(*_):
        raise error

    monkeypatch.setattr(versions.adapters, "build", broken)
    assert site.versions.follow_store() and site.live.version == 0
    assert type(error).__name__ in site.store.policy(bad)["reason"]


def test_where_the_fallback_is_bad_too_the_one_before_it_answers_and_at_last_the_base(site, tensors):
    versions = [publish(site, tensors) for _ in range(4)]
    for version in versions[1:]:
        manifest_with(rank="four")(site.settings.adapters_dir / f"v{version:04d}")
    assert site.versions.follow_store() and site.live.version == versions[0] == site.store.live_policy()["version"]
    shutil.rmtree(site.settings.adapters_dir)
    assert restarted(site).versions.follow_store() and site.live.version == 0
    assert [row["status"] for row in site.store.policies()] == ["rejected"] * 4 + ["live"]
