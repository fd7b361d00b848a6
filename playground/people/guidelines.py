"""The owner's guidelines for people who vote: a Markdown file. The page shows them in a fold (`ui/guidelines.py`)."""

from pathlib import Path

from playground.settings import SettingsError

LONGEST = 64 << 10  # bytes


def read(path: str) -> str:
    """The text of the file; "" where none is named. SettingsError where it cannot be used."""
    if not path:
        return ""
    try:
        with open(Path(path).expanduser(), "rb") as file:
            content = file.read(LONGEST + 1)
        if len(content) > LONGEST:
            raise SettingsError(f"--people.guidelines: {path} is longer than {LONGEST >> 10} KB.")
        return content.decode("utf-8-sig").strip()
    except OSError as error:
        raise SettingsError(f"--people.guidelines: {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise SettingsError(f"--people.guidelines: {path} is not in UTF-8.") from None
