"""The source files of the compiled step. Imports neither numba nor torch."""

import hashlib
from pathlib import Path

FOLDER = Path(__file__).parent


def files() -> list[Path]:
    return sorted(FOLDER.glob("*.py"))


def digest() -> str:
    """Of all files, in hexadecimal: numba itself compiles again only when the file of the function that is called
    changes.
    """
    return hashlib.sha256(b"".join(file.read_bytes() for file in files())).hexdigest()
