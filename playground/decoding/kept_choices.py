"""`tuning.json`: what was measured on this machine, so that the next start need not measure it again."""

import json
import logging
import os
import platform
import secrets
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from transformers import PreTrainedModel

from playground.decoding.choice import Choice
from playground.models.loading import BaseIdentity
from playground.settings import Settings

log = logging.getLogger(__name__)

_CHOICE = TypeAdapter(Choice)


class KeptChoices:
    """What is kept for one model and these settings, among what is kept for others."""

    def __init__(
        self, settings: Settings, model: PreTrainedModel, identity: BaseIdentity, formats: Sequence[str]
    ) -> None:
        self._file = settings.data_dir / "tuning.json"
        self._threads = settings.threads
        self._formats = formats
        self._key = " ".join(
            [
                platform.machine(),
                _cpu(),
                str(settings.threads),
                torch.__version__,
                identity["hash"][:16],
                ",".join(formats),
                str(model.dtype),  # of the model's own layers, which may read prompts faster
            ]
        )

    def choice(self) -> Choice | None:
        """The Choice that an earlier start measured; None where there is none that a measurement makes."""
        fields = json.dumps(self._all().get(self._key))
        try:
            choice = _CHOICE.validate_json(fields, strict=True)  # fields of Python would have to be a Choice
        except ValueError:
            return None
        if choice.threads > self._threads:
            return None
        measured = choice.number_format in self._formats and choice.milliseconds is not None
        return choice if measured or choice.number_format == "plain" else None

    def keep(self, choice: Choice) -> None:
        """Write the file anew, with what another process has kept meanwhile. What both write in the same moment, or
        cannot write, the next start measures again.
        """
        choices = {**self._all(), self._key: asdict(choice)}
        partial = self._file.with_suffix(f".{secrets.token_hex(8)}.partial")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(choices, indent=1))
            os.replace(partial, self._file)  # server and worker may both read it
        except OSError as error:
            name = self._file.name
            log.warning("%s cannot be written, so that the next start measures again: %s", name, error.strerror)
            partial.unlink(missing_ok=True)

    def _all(self) -> dict[str, Any]:
        """What earlier starts measured, by machine and model; empty where the file is missing or damaged."""
        try:
            choices = json.loads(self._file.read_text())
        except (OSError, ValueError, RecursionError):
            return {}
        return choices if isinstance(choices, dict) else {}


def _cpu() -> str:
    """The CPU's name and number of cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor()
    return f"{name} x{os.cpu_count()}"
