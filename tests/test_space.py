"""What the check of a Space's folder finds: in the head of its README, in its files, in its imports."""

import itertools

import pytest
from argon2 import PasswordHasher

from playground.people import admins, keys, users_file
from playground.people.passwords import NO_PASSWORD, Cost, Hasher
from tools import space_checks, space_folder
from tools.space_checks import LARGEST_FILE, PYTHON

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


def change(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_this_repository_is_a_space(folder):
    assert space_checks.problems(folder) == []
    assert (folder / "app.py").exists() and not (folder / ".venv").exists() and not (folder / "data").exists()


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


@pytest.mark.parametrize(
    "added", ["hf_oauth_scopes: [read-memberships]", "hf_oauth_authorized_org: acme", "pinned: false"]
)
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
        ("the value of a secret", "  NUDGE_OIDC_CLIENT_SECRET: " + "s3cret" * 4),
        ("the value of a secret", '{"AWS_SECRET_ACCESS_KEY": "' + "aB/1" * 10 + '"}'),
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
        ("the value of a secret", "python app.py --oidc.client-secret=" + "s3cret" * 4),
        ("the value of a secret", "python app.py --oidc.client-secret " + "s3cret" * 4),
        ("the value of a secret", '["app.py", "--metrics.token", "' + "s3cret" * 4 + '"]'),
        ("the value of a secret", "client_secret = '" + "secret" * 4 + "'"),
        ("the value of a secret", "  client-secret: " + "s3cret" * 4),
        ("a key of another provider", "api_key = 'sk-" + "a1" * 10 + "'"),
        ("a key of another provider", "sk-" + "proj-" + "a1_" * 20),
        ("a password in an address", "git clone https://ann" + ":secret@git.example/nudge"),
        ("a password in an address", "redis://" + ":s3cret@127.0.0.1:6379"),
        ("a token of GitHub", "ghp_" + "a1" * 18),
        ("a private key", "-----BEGIN RSA " + "PRIVATE KEY-----"),
        ("a private key", "-----BEGIN " + "PRIVATE KEY-----"),
    ],
    ids=itertools.count(),  # the secrets differ in every process
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
        "--oidc.client-secret=… or --oidc.client-secret-file /run/secrets/client",
        "`--oidc.client-secret`, `--metrics.token` are secrets",
        "client_secret = settings.oidc.client_secret",
        "a task-" + "with-a-name-of-many-characters, sk-short",
        "https://$USER:$PASSWORD@nudge.example, https://ann@nudge.example:80/a@b, http://127.0.0.1:7860/@ann",
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
        *(
            ".env.local",
            "deploy/.env.production",
            "nudge.env.local",
            "nudge.db.gz",
            "backups/nudge.db.bak",
            "tls.key.zip",
        ),
    ],
)
def test_a_private_file_is_named(small, name):
    (small / name).parent.mkdir(parents=True, exist_ok=True)
    (small / name).touch()
    assert list(space_checks.secret_problems(small, space_checks.files(small))) == [f"{name} is no file for others"]


@pytest.mark.parametrize("name", [".env.example", "environment.py", "nudge.dbs", "keys.py", "a.tar.gz"])
def test_a_file_for_everybody_is_none(small, name):
    (small / name).touch()
    assert list(space_checks.secret_problems(small, space_checks.files(small))) == []


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
