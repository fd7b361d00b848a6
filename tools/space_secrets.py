"""What must not be in a folder that others can read: private files by their name, and secrets by their form.

The forms of Nudge's own secrets are those of the modules that make them.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from playground.people import keys, passwords, users_file
from playground.settings import Settings, fields, flag, operating, variable

TOKEN = r"[A-Za-z0-9_-]{43}"  # of secrets.token_urlsafe(32)
ALONE = r"(?<![\w-])(?:{})(?![\w-])"
VALUE = r"[A-Za-z0-9+/_~.:=-]{16,}"
SETTINGS = [name for name, field in fields(Settings).items() if operating.Secret in map(type, field.metadata)]
# the settings that are secrets, and other programs' variables that are
VARIABLES = [*map(variable, SETTINGS), "HF_TOKEN", "OAUTH_CLIENT_SECRET", "AWS_SECRET_ACCESS_KEY"]
FLAGS = [re.escape(flag(name)) for name in SETTINGS]
# a value in quotes, or one that is no name of a program's variable
CLIENT_SECRET = rf"""client[_-]secret["']?[ \t]*[=:][ \t]*(["']{VALUE}|(?=[\w~+/-]*\d)[\w~+/-]{{16,}})"""
FORMS = {
    "a token of Hugging Face": r"\b(hf_[A-Za-z0-9]{30,}|hf_oauth_[\w.-]{30,}|api_org_[A-Za-z0-9]{30,})",
    "a key of AWS": r"\b(AKIA|ASIA)[0-9A-Z]{16}\b",
    "a token of GitHub": r"\b(gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{50})",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY( BLOCK)?-----",
    "a password's hash": rf"\$argon2id\$v=\d+\$m=\d+,t=\d+,p=\d+\$[A-Za-z0-9+/]{{16,}}|{passwords.FORM.pattern}",
    "a user": rf"^{users_file.USER.pattern}$",
    "an invitation": rf"^{users_file.INVITATION.pattern}$|/invitation/{TOKEN}(?![\w-])",
    "an admin link": rf"/admin/{TOKEN}(?![\w-])",
    "a key for programs": ALONE.format(keys.KEY_FORM.pattern),
    "a key of another provider": r"(?<![\w-])sk-[\w-]{20,}",
    "a password in an address": r"://[\w.~%+-]*:[\w.~%!*+=-]+@[\w\[]",
    "the value of a secret": (
        rf"\b({'|'.join(VARIABLES)})[\"']?[ \t]*[=:][ \t]*[\"']?{VALUE}"
        rf"|(?<![\w-])({'|'.join(FLAGS)})([ \t]*=|[\"']?,?[ \t])[ \t]*[\"']?{VALUE}"
        rf"|(?i:{CLIENT_SECRET})"
    ),
}
SECRETS = {what: re.compile(form.encode(), re.M | re.A) for what, form in FORMS.items()}
PACKED = r"(\.(gz|bz2|xz|zst|zip|7z|bak|old|orig))*"
PRIVATE_NAMES = re.compile(
    r"(^|/)(\.netrc|\.npmrc|\.pypirc|id_(rsa|dsa|ecdsa|ed25519)|(\w+-)?users(\.txt|\.lock)?"
    rf"|.*\.(env|pem|key|p12|pfx|token|db|db-wal|db-shm|sqlite3?){PACKED}"
    r"|[^/]*\.env\.(?!(example|sample|template)$)[^/]+)$"
)


def secret_problems(folder: Path, paths: list[Path]) -> Iterator[str]:
    """Of these files below `folder`, each that is private or has a secret in it; each in a sentence, without the
    secret.
    """
    for path in paths:
        name = path.relative_to(folder).as_posix()
        if PRIVATE_NAMES.search(name):
            yield f"{name} is no file for others"
        content = path.read_bytes()
        for what, form in SECRETS.items():
            if found := form.search(content):
                line = content.count(b"\n", 0, found.start()) + 1
                yield f"{name} has {what} in line {line}"
