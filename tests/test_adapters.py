"""Published versions on disk: a torn one cannot exist, a wrong one cannot load."""

import json

import pytest
import torch
from safetensors.torch import save_file

from playground.models import adapter_reading, adapters
from playground.models.adapter_reading import CONFIG, MANIFEST, WEIGHTS, BadAdapter

BASE = {"model": "tiny", "hash": "0123456789abcdef"}
A, B = "layers.0.q_proj.lora_A.weight", "layers.0.q_proj.lora_B.weight"


def tensors(**changes):
    generator = torch.Generator().manual_seed(0)
    return {A: torch.randn(4, 8, generator=generator), B: torch.randn(8, 4, generator=generator), **changes}


def write(root, content=None, version=1):
    return adapters.write(
        root,
        version,
        content or tensors(),
        rank=4,
        alpha=8,
        targets=["q_proj", "k_proj"],
        base=BASE,
        parent=0,
        round_id=3,
        scores={"gain": 1.5},
    )


def read(folder, **expected):
    return adapter_reading.read(folder, **{"base_hash": BASE["hash"], **expected})


def resigned(folder):
    """Make the manifest agree with the files again, as somebody would who means harm."""
    manifest = json.loads((folder / MANIFEST).read_text())
    for name in (WEIGHTS, CONFIG):
        manifest["files"][name]["sha256"] = adapters._sha256(folder / name)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def flip(path, where):
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.write_bytes(data)


# -- there and back


def test_what_is_written_is_read(tmp_path):
    folder, sha256 = write(tmp_path)
    manifest, loaded = read(folder, expected_sha256=sha256)
    assert folder == tmp_path / "v0001"
    assert loaded.keys() == tensors().keys() and all(torch.equal(loaded[k], v) for k, v in tensors().items())
    assert {k: manifest[k] for k in ("version", "parent", "round", "rank", "alpha", "targets", "base", "scores")} == {
        "version": 1,
        "parent": 0,
        "round": 3,
        "rank": 4,
        "alpha": 8,
        "targets": ["k_proj", "q_proj"],
        "base": BASE,
        "scores": {"gain": 1.5},
    }


def test_the_config_is_pefts_own(tmp_path):
    config = json.loads((write(tmp_path)[0] / CONFIG).read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["target_modules"]) == (
        "LORA",
        4,
        8,
        ["k_proj", "q_proj"],
    )


def test_tensors_that_are_not_contiguous_can_be_written(tmp_path):
    folder, _ = write(tmp_path, tensors(**{A: torch.arange(32.0).reshape(8, 4).T}))
    assert torch.equal(read(folder)[1][A], torch.arange(32.0).reshape(8, 4).T)


def test_writing_the_same_version_again_keeps_the_first(tmp_path):
    """A round that was killed after the rename writes again when it is resumed; the number is never reused."""
    first = write(tmp_path)
    assert write(tmp_path, tensors(**{A: torch.zeros(4, 8)})) == first
    assert torch.equal(read(first[0])[1][A], tensors()[A])


def test_a_folder_of_another_round_is_replaced(tmp_path):
    """A version of a database that was lost kept its folder, so the round that got its number failed at its end."""
    write(tmp_path)
    other = adapters.write(
        tmp_path,
        1,
        tensors(**{A: torch.zeros(4, 8)}),
        rank=4,
        alpha=8,
        targets=["q_proj", "k_proj"],
        base=BASE,
        parent=0,
        round_id=3,
        scores={"gain": 1.75},
    )
    manifest, loaded = read(other[0], expected_sha256=other[1])
    assert manifest["scores"] == {"gain": 1.75} and torch.equal(loaded[A], torch.zeros(4, 8))


def test_a_torn_write_does_not_exist(tmp_path):
    partial = tmp_path / ".v0001.partial"
    partial.mkdir()
    (partial / WEIGHTS).write_bytes(b"half")
    assert not (tmp_path / "v0001").exists()
    with pytest.raises(BadAdapter, match=r"\.v0001\.partial is incomplete"):
        read(partial)


def test_a_torn_write_is_replaced_by_the_next_one(tmp_path):
    partial = tmp_path / ".v0001.partial"
    partial.mkdir()
    (partial / "left over").write_bytes(b"half")
    folder, _ = write(tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == [CONFIG, WEIGHTS, MANIFEST]
    assert [p.name for p in tmp_path.iterdir()] == ["v0001"]


# -- what is not accepted


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_flipped_byte_is_found(tmp_path, name):
    folder, _ = write(tmp_path)
    flip(folder / name, -2)
    with pytest.raises(BadAdapter, match=f"v0001/{name} does not match the hash in its manifest"):
        read(folder)


@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS, CONFIG])
def test_a_missing_file_is_incomplete(tmp_path, name):
    folder, _ = write(tmp_path)
    (folder / name).unlink()
    with pytest.raises(BadAdapter, match=f"v0001 is incomplete: .*{name}"):
        read(folder)


def test_a_folder_that_is_not_there_is_incomplete(tmp_path):
    with pytest.raises(BadAdapter, match="v0007 is incomplete"):
        read(tmp_path / "v0007")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"files": {}}'], ids=["empty", "cut", "list", "bare", "no files"]
)
def test_a_manifest_that_says_too_little_is_incomplete(tmp_path, text):
    folder, _ = write(tmp_path)
    (folder / MANIFEST).write_text(text)
    with pytest.raises(BadAdapter, match="v0001 is incomplete"):
        read(folder)


@pytest.mark.parametrize("key", ["base", "rank", "alpha", "targets"])
def test_a_manifest_without_what_the_loader_needs_is_incomplete(tmp_path, key):
    """It used to end as a KeyError, which the server does not take for a bad version."""
    folder, _ = write(tmp_path)
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest[key]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BadAdapter, match=f"v0001 is incomplete: .*{key}"):
        read(folder)


def test_another_base_model_is_named(tmp_path):
    folder, _ = write(tmp_path)
    with pytest.raises(
        BadAdapter,
        match=r"v0001 was trained on tiny \(0123456789ab\), not on the model that is running \(fedcba987654\)",
    ):
        read(folder, base_hash="fedcba9876543210")


def test_another_version_than_the_published_one_is_found(tmp_path):
    folder, _ = write(tmp_path)
    with pytest.raises(BadAdapter, match="v0001 is not the version that was published"):
        read(folder, expected_sha256="0" * 64)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_a_value_that_is_not_finite_or_far_too_large_is_refused(tmp_path, value):
    bad = tensors()[B].clone()
    bad[0, 0] = value
    folder, _ = write(tmp_path, tensors(**{B: bad}))
    with pytest.raises(BadAdapter, match=f"v0001: {B} has norm .*; at most 1000.0 is accepted"):
        read(folder)


@pytest.mark.parametrize(
    "content",
    [{A: tensors()[A]}, tensors(extra=torch.zeros(1)), tensors(**{A: torch.zeros(5, 8)})],
    ids=["missing", "extra", "reshaped"],
)
def test_other_tensors_than_the_manifest_lists_are_refused(tmp_path, content):
    folder, _ = write(tmp_path)
    save_file(content, folder / WEIGHTS)
    with pytest.raises(BadAdapter, match="v0001 holds other tensors than its manifest lists"):
        read(resigned(folder))


def test_weights_that_are_no_safetensors_are_refused(tmp_path):
    folder, _ = write(tmp_path)
    (folder / WEIGHTS).write_bytes(b"\x80\x04 a pickle")
    with pytest.raises(BadAdapter, match="v0001"):
        read(resigned(folder))


# -- copying into a model


def parameters():
    return {k: torch.zeros_like(v) for k, v in tensors().items()}


def test_copying_fills_the_parameters_in_place():
    into = parameters()
    before = into[A]
    adapters.copy_strictly(tensors(), into)
    assert torch.equal(before, tensors()[A]) and torch.equal(into[B], tensors()[B])


def test_a_missing_tensor_is_named():
    with pytest.raises(BadAdapter, match=f"the adapter does not fit the model: 1 names differ, for example {A}"):
        adapters.copy_strictly({B: tensors()[B]}, parameters())


def test_an_extra_tensor_is_named():
    with pytest.raises(BadAdapter, match="1 names differ, for example extra"):
        adapters.copy_strictly(tensors(extra=torch.zeros(1)), parameters())


def test_a_wrong_shape_is_named_with_both_shapes():
    with pytest.raises(BadAdapter, match=rf"{A} has shape \(5, 8\); the model needs \(4, 8\)"):
        adapters.copy_strictly(tensors(**{A: torch.zeros(5, 8)}), parameters())


def test_a_refused_adapter_changes_no_parameter():
    into = parameters()
    with pytest.raises(BadAdapter):
        adapters.copy_strictly(tensors(**{B: torch.zeros(5, 8)}), into)
    assert not into[A].any()
