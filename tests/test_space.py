"""The folder that is pushed to a Space: where it may be made, what goes into it, and what its check finds."""

import subprocess
from pathlib import Path

import pytest
from argon2 import PasswordHasher

from playground.people import admins, keys, users_file
from playground.people.passwords import NO_PASSWORD, Cost, Hasher
from tools import space, space_checks, space_folder
from tools.space_checks import LARGEST_FILE, PYTHON
from tools.space_folder import CannotBuild

CHEAP = Hasher(Cost(n=2, r=8, p=1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The repository as it would be pushed, whatever is not committed here."""
    folder = tmp_path_factory.mktemp("space") / "folder"
    names = space_folder.tracked(space_folder.ROOT)
    space_folder.copy([name for name in names if (space_folder.ROOT / name).is_file()], space_folder.ROOT, folder)
    return folder


@pytest.fixture
def small(folder, tmp_path):
    """A folder with the head of the README, the requirements and one module."""
    for name in ("README.md", "requirements.txt", "app.py"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    return tmp_path


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A small repository, in whose folder the test is."""
    root = tmp_path / "repository"
    (root / "playground").mkdir(parents=True)
    for name in ("app.py", "README.md", "playground/a.py"):
        (root / name).write_text(name)
    (root / ".gitignore").write_text("build/\n")
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "-c", "user.name=ann", "-c", "user.email=ann@nudge.example", "commit", "--quiet", "-m", "all")
    monkeypatch.chdir(root)
    return root


def git(root, *arguments):
    subprocess.run(["git", *arguments], cwd=root, check=True)


def all_files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def change(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_this_repository_is_a_space(folder):
    assert space_checks.problems(folder) == []
    assert (folder / "app.py").exists() and not (folder / ".venv").exists() and not (folder / "data").exists()


# -- where the folder may be


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (".", "holds this repository"),
        ("..", "holds this repository"),
        ("playground/new", "in this repository"),
        (".git/new", "in this repository"),
        ("data/new", "in this repository"),
        ("build", "in this repository"),
        ("../home", "holds your home"),
        ("../letters", "letters has dear.txt"),
        ("../letters/dear.txt", "no folder"),
        ("../link", "is a link"),
        ("../with an empty one", "has empty"),
    ],
)
def test_a_folder_that_may_hold_something_else_is_refused_and_kept(repository, monkeypatch, capsys, name, said):
    """`--folder .` removed the repository, with `.git`, before anything was checked."""
    above = repository.parent
    (above / "home" / "ann").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(above / "home" / "ann"))
    (above / "letters").mkdir()
    (above / "letters" / "dear.txt").write_text("dear")
    (above / "link").symlink_to(above / "letters")
    (above / "with an empty one" / "empty").mkdir(parents=True)
    before = all_files(above)
    assert space.main(["--folder", name], repository) == 1
    assert said in capsys.readouterr().err
    assert all_files(above) == before and (above / "with an empty one" / "empty").exists()


@pytest.mark.parametrize("name", ["build/space", "../new", "../new/below", "../empty"])
def test_a_new_folder_an_empty_one_and_an_earlier_build_are_taken(repository, name):
    (repository.parent / "empty").mkdir()
    space_folder.build(Path(name), repository)
    git(repository, "rm", "--quiet", "playground/a.py")
    (Path(name) / "playground" / "__pycache__").mkdir()
    (Path(name) / "playground" / "__pycache__" / "a.pyc").touch()
    space_folder.build(Path(name), repository)
    assert {path.name for path in all_files(Path(name))} == {"app.py", "README.md", ".gitignore"}


def test_an_earlier_build_with_a_file_of_somebody_is_kept(repository):
    space_folder.build(Path("build/space"), repository)
    Path("build/space/notes.txt").write_text("mine")
    with pytest.raises(CannotBuild, match=r"has notes\.txt, which no build has put there"):
        space_folder.build(Path("build/space"), repository)
    assert Path("build/space/notes.txt").read_text() == "mine"


# -- what goes into it


def test_a_file_that_is_deleted_here_is_named(repository):
    """It was a FileNotFoundError, after the folder had been emptied."""
    space_folder.build(Path("build/space"), repository)
    (repository / "playground" / "a.py").unlink()
    with pytest.raises(CannotBuild, match=r"playground/a\.py is deleted here, and git still has it: git rm"):
        space_folder.build(Path("build/space"), repository)
    assert Path("build/space/playground/a.py").exists()


def test_a_new_module_that_git_does_not_have_is_named(repository):
    """It was left out, and the Space failed at the import."""
    (repository / "playground" / "b.py").touch()
    with pytest.raises(CannotBuild, match=r"playground/b\.py is new and git does not have it.*git add"):
        space_folder.build(Path("build/space"), repository)
    git(repository, "add", ".")
    space_folder.build(Path("build/space"), repository)
    assert Path("build/space/playground/b.py").exists()


def test_what_is_not_committed_is_said(repository):
    (repository / "app.py").write_text("changed")
    (repository / "notes.txt").touch()
    space_folder.build(repository.parent / "new", repository)
    assert (repository.parent / "new" / "app.py").read_text() == "changed"
    assert list(space_folder.remarks(repository)) == [
        "app.py is not committed as it is here; the folder has what is here.",
        "notes.txt is left out, since git does not have it.",
    ]


def test_a_link_and_a_folder_without_git_are_named(repository, tmp_path):
    (repository / "link").symlink_to("/etc/passwd")
    git(repository, "add", ".")
    with pytest.raises(CannotBuild, match="link is a link"):
        space_folder.build(Path("build/space"), repository)
    (tmp_path / "bare").mkdir()
    with pytest.raises(CannotBuild, match="is no repository of git"):
        space_folder.build(tmp_path / "new", tmp_path / "bare")


# -- the head of the README


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("sdk: gradio", "sdk: docker", "sdk is 'docker'"),
        ("sdk_version: 6", "sdk_version: 5", "sdk_version"),
        (f'python_version: "{PYTHON}"', f"python_version: {PYTHON}", "python_version is 3.12 and has to be"),
        ("hf_oauth: true", 'hf_oauth: "true"', "hf_oauth is 'true'"),
        ("hf_oauth_expiration_minutes: 10080", "hf_oauth_expiration_minutes: abc", "minutes is 'abc'"),
        ("hf_oauth_expiration_minutes: 10080", "hf_oauth_expiration_minutes: 43201", "from 1 to 43200"),
        ("hf_oauth_expiration_minutes: 10080", "hf_oauth_expiration_minutes: true", "minutes is True"),
        ("hf_oauth_expiration_minutes: 10080\n", "", "hf_oauth_expiration_minutes is missing"),
        ("license:", "hf_oauth_scopes: [profile, write-everything]\nlicense:", "hf_oauth_scopes is"),
        ("license:", "hf_oauth_scopes: email\nlicense:", "hf_oauth_scopes is 'email'"),
        (
            "license:",
            "hf_oauth_authorized_org: [acme, ]\nhf_oauth_scope: [email]\nlicense:",
            "know the key hf_oauth_scope",
        ),
        ("license:", "hf_oauth_authorized_org:\nlicense:", "hf_oauth_authorized_org is None"),
        ("suggested_hardware: cpu-basic", "suggested_hardware: gpu", "suggested_hardware is 'gpu'"),
        ("suggested_hardware: cpu-basic\n", "", "suggested_hardware is missing"),
        ("colorTo: purple", "colorTo: violet", "colorTo"),
        ("emoji: 👉", "emoji: '>'", "emoji"),
        ("app_file: app.py", "app_file: main.py", "app_file"),
        ("short_description: A", f"short_description: {'a' * 60}", "short_description"),
        ("  - HuggingFaceTB/", "  - ", "models"),
        ("title: Nudge", "title: Nudge: chat", "the head is no YAML"),
        ("---\n", "", "no head"),
    ],
)
def test_a_head_that_does_not_fit_is_named(small, old, new, said):
    change(small / "README.md", old, new)
    [problem] = space_checks.front_matter_problems(small, (small / "requirements.txt").read_text())
    assert said in problem


@pytest.mark.parametrize("added", ["hf_oauth_scopes: [email]", "hf_oauth_authorized_org: acme", "pinned: false"])
def test_what_a_head_may_have_besides_is_taken(small, added):
    change(small / "README.md", "license:", f"{added}\nlicense:")
    assert list(space_checks.front_matter_problems(small, (small / "requirements.txt").read_text())) == []


def test_a_torch_that_zero_gpu_may_not_have_is_named():
    [problem] = space_checks.torch_problems("torch==2.7.9\n")
    assert "torch 2.7.9" in problem
    assert list(space_checks.torch_problems("torch==2.13.0  # the model\n")) == []


# -- what must not be pushed


def made_by_nudge():
    """(what it is called, a line with it) of each secret that Nudge makes."""
    content = users_file.Content().with_user("ann", "admin", CHEAP.hash("a good password"))
    token, invitation = users_file.new_invitation("viewer", 3)
    return [
        ("a password's hash", users_file.text_of(content)),
        ("a user", users_file.text_of(users_file.Content().with_user("ann", "viewer", NO_PASSWORD))),
        (
            "a password's hash",
            "ann:" + PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash("a good password"),
        ),
        ("an invitation", users_file.text_of(users_file.Content().with_invitation(invitation))),
        ("an invitation", f"come in: https://nudge.example/invitation/{token}"),
        ("an admin link", f"Admin link, for one browser: http://127.0.0.1:7860/admin/{admins.AdminLink().issue()}"),
        ("a key for programs", f'api_key="{keys.new_key()}"'),
        ("the value of a secret", "NUDGE_OIDC_CLIENT_SECRET=" + "s3cret" * 4),
        ("the value of a secret", 'export NUDGE_METRICS_TOKEN="' + "s3cret" * 4 + '"'),
        ("the value of a secret", "NUDGE_ALERTS_URL=" + "https://hooks.example/" + "s3cret" * 4),
    ]


@pytest.mark.parametrize(
    ("said", "text"),
    [
        *made_by_nudge(),
        ("a token of Hugging Face", "token hf_" + "a1" * 17),
        ("a key of AWS", "AKIA" + "A1" * 8),
        ("the value of a secret", "AWS_SECRET_ACCESS_KEY=" + "aB/1" * 10),
        ("a token of GitHub", "ghp_" + "a1" * 18),
        ("a private key", "-----BEGIN RSA " + "PRIVATE KEY-----"),
        ("a private key", "-----BEGIN " + "PRIVATE KEY-----"),
    ],
)
def test_a_secret_is_named_and_not_shown(small, said, text):
    """Hashes of the users file and keys for programs were not found."""
    (small / "notes.txt").write_text(f"first\n{text}\n")
    found = list(space_checks.secret_problems(small, space_checks.files(small)))
    assert any(problem.startswith(f"notes.txt has {said} in line ") for problem in found), found
    assert not any(word in problem for problem in found for word in text.split() if len(word) > 30)


@pytest.mark.parametrize(
    "text",
    [
        "a key such as nudge-… or nudge-backup",
        "nudge-" + "a-name-that-is-longer-than-any-key-of-nudge-can-be-since-it-goes-on",
        "scrypt$N$r$p$salt$hash",
        "NUDGE_OIDC_CLIENT_SECRET=…",
        "NUDGE_METRICS_TOKEN=$TOKEN_OF_THIS_SERVER",
        "HF_TOKEN=",
        "http://127.0.0.1:7860/admin/…",
        "user:NAME:ROLE:ID:HASH",
    ],
)
def test_what_documents_say_of_secrets_is_none(small, text):
    (small / "notes.txt").write_text(text)
    assert list(space_checks.secret_problems(small, space_checks.files(small))) == []


@pytest.mark.parametrize(
    "name",
    [
        *(".env", "deploy/nudge.env", "users", "users.txt", "deploy/users", "users.lock", "nudge.db", "nudge.db-wal"),
        *("deploy/tls/privkey.pem", "nudge.token", "id_ed25519", ".netrc"),
    ],
)
def test_a_private_file_is_named(small, name):
    (small / name).parent.mkdir(parents=True, exist_ok=True)
    (small / name).touch()
    assert list(space_checks.secret_problems(small, space_checks.files(small))) == [f"{name} is no file for others"]


def test_a_large_file_is_named(small):
    (small / "big.bin").write_bytes(bytes(LARGEST_FILE + 1))
    [problem] = space_checks.size_problems(small)
    assert "big.bin" in problem and "at most" in problem


def test_an_import_that_nothing_brings_is_named(small):
    """pytest is installed here, by the other file of requirements."""
    (small / "playground").mkdir()
    (small / "playground" / "x.py").write_text(
        "import json\nimport pytest\nimport torch\nfrom starlette import status\n"
    )
    found = space_checks.import_problems(small, (small / "requirements.txt").read_text())
    assert list(found) == ["playground/x.py imports pytest, which requirements.txt does not bring"]


# -- the command


def test_without_a_start_the_command_says_so(repository, folder, capsys):
    for name in ("README.md", "requirements.txt", "app.py"):
        (repository / name).write_bytes((folder / name).read_bytes())
    git(repository, "add", ".")
    (repository / "playground" / "a.py").write_text("")
    arguments = ["--no-start", "--repo", "ann/nudge", "--hardware", "zero-a10g"]
    assert space.main(arguments, repository) == 0
    said = capsys.readouterr()
    assert "neither installed nor started" in said.out
    assert f"hf upload ann/nudge {repository}/build/space . --type space" in said.out
    assert "hf repos create ann/nudge --type space --space-sdk gradio --flavor zero-a10g" in said.out
    assert "note: playground/a.py is not committed" in said.err
    (repository / "users").touch()
    git(repository, "add", ".")
    assert space.main(arguments, repository) == 1
    said = capsys.readouterr()
    assert "users is no file for others" in said.err and "hf upload" not in said.out
