"""The model card of a version for other programs: a README.md for Hugging Face's hub with what is known of it.

Owns what the card says. It holds numbers and settings alone, nothing that anybody wrote.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import try_to_load_from_cache

from playground.models import sources
from playground.models.ratings import Duels, Rating, WinRate, rate
from playground.settings import Settings, fields, sections
from playground.store import Row, Store
from playground.system.pushing import MARKER

NAME = "README.md"
LICENSE = re.compile(r"^license:\s*[\"']?([\w.-]+)", re.MULTILINE)
FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---", re.DOTALL)
MOST_BYTES = 1 << 20  # of a base model's README.md that is read

Kind = Literal["adapter", "merged"]

LOAD_ADAPTER = """from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained({base})
tokenizer = AutoTokenizer.from_pretrained({base})
model = PeftModel.from_pretrained(base, ".")"""

LOAD_MERGED = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")"""


@dataclass(frozen=True)
class Base:
    """The base model as others know it: its id on the hub where it has one, else the name of its folder; and the
    licence, where its own card says one.
    """

    name: str
    hub_id: str | None
    license: str | None

    @classmethod
    def of(cls, model: str, settings: Settings) -> "Base":
        """Of the model that a version's manifest names: a hub id, or the name of a folder."""
        if model in (sources.EMBEDDED_HUB_ID, sources.embedded_folder(settings).name):
            return cls(sources.EMBEDDED_HUB_ID, sources.EMBEDDED_HUB_ID, sources.EMBEDDED_LICENSE)
        if model != settings.model or Path(model).exists():
            folder = Path(settings.model).expanduser() if settings.model else None
            is_it = folder is not None and folder.name == model
            return cls(model, None, license_in(folder / NAME) if folder and is_it else None)
        cached = try_to_load_from_cache(model, NAME)
        return cls(model, model, license_in(Path(cached)) if isinstance(cached, str) else None)


def license_in(card: Path) -> str | None:
    """The licence that a model's card names, or None."""
    try:
        with card.open("rb") as file:
            text = file.read(MOST_BYTES).decode("utf-8", "replace")
    except OSError:
        return None
    front = FRONT_MATTER.match(text)
    found = LICENSE.search(front[1]) if front else None
    return found[1] if found else None


@dataclass(frozen=True)
class Facts:
    """What the store knows of a version now."""

    history: Row  # as in `Store.version_history`
    rating: Rating | None
    rounds: int  # from the base to this version
    round: Row | None  # that made it

    @classmethod
    def of(cls, store: Store, version: int, most_weight: float) -> "Facts":
        """Of a complete version; LookupError otherwise. `most_weight`: as `rate`."""
        history = {row["version"]: row for row in store.version_history()}
        before = {row["version"]: row["before"] or 0 for row in history.values()}
        duels = [Duels(**row) for row in store.version_duels()]
        row = history[version]
        return cls(
            history=row,
            rating=rate(duels, before, most_weight).get(version),
            rounds=_generation(version, history),
            round=store.round(row["round"]) if row["round"] is not None else None,
        )


def _generation(version: int, history: Mapping[int, Row]) -> int:
    """How many rounds lead from the base to a version."""
    seen: set[int] = set()
    while version and version in history and version not in seen:
        seen.add(version)
        version = history[version]["parent"] or 0
    return len(seen)


def card(facts: Facts, base: Base, kind: Kind) -> str:
    """The README.md of a version, as an adapter or merged into its base."""
    version = facts.history["version"]
    made = f"A LoRA adapter for `{_code(base.name)}`, made" if kind == "adapter" else f"`{_code(base.name)}`, trained"
    parts = [
        _front_matter(base, kind),
        f"# Version {version}",
        f"{made} by Nudge {_learnt_from(facts)}.",
        _table("What is known of it", _figures(facts)),
        _table("Settings of its round that are not the defaults", _settings(facts)),
        "## Load it\n\n```python\n" + _loading(base, kind) + "\n```",
        MARKER,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(base: Base, kind: Kind) -> str:
    lines = {
        "library_name": "peft" if kind == "adapter" else "transformers",
        "pipeline_tag": "text-generation",
        "base_model": base.hub_id,
        "base_model_relation": ("adapter" if kind == "adapter" else "finetune") if base.hub_id else None,
        "license": base.license,
    }
    written = "\n".join(f"{name}: {json.dumps(value)}" for name, value in lines.items() if value)
    return f"---\n{written}\ntags:\n- nudge\n- lora\n---"


def _learnt_from(facts: Facts) -> str:
    figures = facts.round["metrics"] if facts.round else {}
    if "sft_file" in figures:
        return "on demonstrations, by supervised fine-tuning"
    return "on people's votes, with a reward model and PPO"


def _figures(facts: Facts) -> dict[str, str]:
    row, report = facts.history, facts.history["report"]
    figures = facts.round["metrics"] if facts.round else {}
    found = {
        "made from": f"version {row['parent']}" if row["parent"] else "the base model",
        "rounds since the base": str(facts.rounds),
    }
    if row["votes"]:
        found["votes that its round learnt from"] = str(row["votes"])
    if figures.get("demonstrations"):
        found["demonstrations"] = str(figures["demonstrations"])
    if figures.get("heldout_loss"):
        before, after = figures["heldout_loss"]
        found["loss on held-out demonstrations, nats a token"] = f"{before:.3f} → {after:.3f}"
    if facts.rating:
        found["votes on pairs of it and another version"] = str(facts.rating.duels)
        found["preferred to the base"] = _rate(facts.rating.over_base)
        found["preferred to the one before"] = _rate(facts.rating.over_before)
    else:
        found["preferred to the base"] = "nobody has compared it yet"
    if "kl" in report:
        found["KL to the base, nats a reply"] = f"{report['kl']:.1f}"
    if "length_new" in report and "length_base" in report:
        found["tokens of a reply"] = f"{report['length_new']:.0f}; the base's: {report['length_base']:.0f}"
    return found


def _rate(share: WinRate) -> str:
    return f"{share.mean:.0%} [{share.low:.0%}, {share.high:.0%}]"


def _settings(facts: Facts) -> dict[str, str]:
    """Settings of training that were changed, by name."""
    config = facts.round["config"] if facts.round else {}
    defaults = {name: field.default for name, field in fields(Settings).items()}
    names = [name for group in sections().values() for name in group if name in config]
    return {name: f"`{_code(str(config[name]))}`" for name in names if config[name] != defaults[name]}


def _table(title: str, rows: Mapping[str, str]) -> str:
    """A section with a table, or nothing where there are no rows."""
    if not rows:
        return ""
    lines = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"## {title}\n\n| | |\n|---|---|\n{lines}"


def _loading(base: Base, kind: Kind) -> str:
    source: Any = json.dumps(base.hub_id or f"the folder of {base.name}")
    return LOAD_ADAPTER.replace("{base}", source) if kind == "adapter" else LOAD_MERGED


def _code(text: str) -> str:
    """A text within a code span of a table."""
    return text.replace("`", "'").replace("|", "/").replace("\n", " ")
