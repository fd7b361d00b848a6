"""Whether this is a Hugging Face Space and of which kind, by the variables that Spaces set.

Nobody sets them by hand, so they are no settings; what follows from them is in `root.py` and where it is used.
"""

import os
from collections.abc import Mapping
from typing import Literal

Kind = Literal["none", "cpu", "gpu", "zero-gpu"]

NO_ACCELERATOR = ("", "none")
NO_GPU = 5  # the exit code of a program that was to have a GPU of ZeroGPU and sees none


def kind_of(environ: Mapping[str, str]) -> Kind:
    """The kind of Space that this environment is of.

    On ZeroGPU the package `spaces` lets torch say that there is a CUDA device; a function gets one only while a call of
    it lasts. So `zero-gpu` means: this process has none.
    """
    if "SPACE_ID" not in environ:
        return "none"
    if environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true"):  # as `spaces` reads it
        return "zero-gpu"
    return "cpu" if environ.get("ACCELERATOR", "").lower() in NO_ACCELERATOR else "gpu"


def cores_of(environ: Mapping[str, str]) -> int:
    """The cores that a Space has; 0 where nothing says so. What the machine under it has, it shares with others."""
    given = environ.get("CPU_CORES", "") if kind_of(environ) != "none" else ""
    try:
        return max(0, int(float(given)))
    except (ValueError, OverflowError):
        return 0


def hosts_of(environ: Mapping[str, str]) -> list[str]:
    """The names of a Space's page: its own first, then those that its owner has given it; none elsewhere."""
    said = environ.get("SPACE_HOST", "") if kind_of(environ) != "none" else ""
    return [name.strip().lower() for name in said.split(",") if name.strip()]


def address_of(environ: Mapping[str, str]) -> str:
    """The address of a Space's page by its own name; "" elsewhere."""
    return next((f"https://{name}" for name in hosts_of(environ)), "")


KIND: Kind = kind_of(os.environ)
