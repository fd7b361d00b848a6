"""Records to the rows of TRL's dataset types (https://huggingface.co/docs/trl/dataset_formats). Pure functions; what
reads the records and writes the rows is `export.py`'s.

Each row also says what it comes from: its marks, `person`, `version`s, `tags`. TRL's trainers leave such columns alone.
"""

from collections.abc import Callable, Iterator
from typing import Any

from playground.data.records import Demonstration, JudgedPair, Record, Thumb, Turn, Turns

Row = dict[str, Any]
Shape = Callable[[Turns], Any]  # of a prompt, completion or dialogue: messages, or one text

SPEAKERS = {"user": "Human", "assistant": "Assistant", "system": "System"}


def conversational(turns: Turns) -> list[Turn]:
    """Messages as they are."""
    return list(turns)


def plain(turns: Turns) -> str:
    """One text in the form of Anthropic's HH-RLHF: "\\n\\nHuman: …\\n\\nAssistant: …"."""
    return "".join(f"\n\n{SPEAKERS[turn['role']]}: {turn['content']}" for turn in turns)


def reply(text: str) -> list[Turn]:
    """A reply as a message."""
    return [{"role": "assistant", "content": text}]


def _prompt_and_completion(messages: Turns, text: str, shape: Shape) -> tuple[Any, Any]:
    """A prompt, and a completion that is right behind it."""
    if shape is plain:
        return plain(messages) + "\n\nAssistant:", f" {text}"
    return shape(messages), shape(reply(text))


def preference(pair: JudgedPair, shape: Shape = conversational, explicit: bool = True) -> Iterator[Row]:
    """TRL's preference, with an explicit or an implicit prompt: a row where one reply is better, none else."""
    if not pair.decided:
        return
    marks = {
        "choice": pair.choice,
        "early": pair.early,
        "tags": pair.tags,
        "chosen_version": pair.right_version if pair.choice == "b" else pair.left_version,
        "rejected_version": pair.left_version if pair.choice == "b" else pair.right_version,
        "base_model": pair.base_model,
        "person": pair.person,
        **pair.marks(),
    }
    if explicit:
        prompt, chosen = _prompt_and_completion(pair.messages, pair.chosen, shape)
        _, rejected = _prompt_and_completion(pair.messages, pair.rejected, shape)
        yield {"prompt": prompt, "chosen": chosen, "rejected": rejected, **marks}
    else:
        chosen, rejected = (shape([*pair.messages, *reply(text)]) for text in (pair.chosen, pair.rejected))
        yield {"chosen": chosen, "rejected": rejected, **marks}


def unpaired(record: Record, shape: Shape = conversational) -> Iterator[Row]:
    """TRL's unpaired preference, for KTO: a row for a thumb, two for a pair of which both replies are bad. Of an early
    "both bad" only a reply that ended with it is one: nobody judged the end of the other.
    """
    if isinstance(record, Thumb):
        yield _unpaired(record, record.reply, record.thumb > 0, "thumb", record.version, shape)
    elif isinstance(record, JudgedPair) and record.choice == "both_bad":
        for text, version, grew in (
            (record.left, record.left_version, record.left_grew),
            (record.right, record.right_version, record.right_grew),
        ):
            if not _has_unseen_end(record, grew):
                yield _unpaired(record, text, False, "both_bad", version, shape)


def _has_unseen_end(pair: JudgedPair, grew: bool | None) -> bool:
    """Whether a reply went on after an early vote; where that is not known, it may have."""
    return pair.early and grew is not False


def _unpaired(
    record: Thumb | JudgedPair, text: str, label: bool, said_by: str, version: int | None, shape: Shape
) -> Row:
    prompt, completion = _prompt_and_completion(record.messages, text, shape)
    return {
        "prompt": prompt,
        "completion": completion,
        "label": label,
        "said_by": said_by,
        "early": isinstance(record, JudgedPair) and record.early,
        "version": version,
        "base_model": record.base_model,
        "person": record.person,
        **record.marks(),
    }


def prompt_completion(record: Record, shape: Shape = conversational) -> Iterator[Row]:
    """TRL's prompt and completion, for SFT: an edited reply, or the reply that was picked."""
    if isinstance(record, Demonstration):
        text, said = record.reply, {"said_by": "edit", "early": False, "version": record.version}
    elif isinstance(record, JudgedPair) and record.decided:
        version = record.right_version if record.choice == "b" else record.left_version
        text, said = record.chosen, {"said_by": "pick", "early": record.early, "version": version}
    else:
        return
    prompt, completion = _prompt_and_completion(record.messages, text, shape)
    by = {"base_model": record.base_model, "person": record.person}
    yield {"prompt": prompt, "completion": completion, **said, **by, **record.marks()}


# what a pair that is no row of a form is called, by its choice
NO_ROW = {
    "a": "votes for one of the two replies, which call neither good or bad",
    "b": "votes for one of the two replies, which call neither good or bad",
    "tie": "ties",
    "both_bad": 'pairs of which both replies are "both bad"',
}


def left_out(record: Record, form: str) -> list[str]:
    """Why a record, or a reply of it, is no row of kto or sft; one reason for each row that is missing."""
    if not isinstance(record, JudgedPair):
        return []
    if form == "kto" and record.choice == "both_bad":
        grown = [grew for grew in (record.left_grew, record.right_grew) if _has_unseen_end(record, grew)]
        return ['replies that went on after an early "both bad"'] * len(grown)
    if form == "kto" or (form == "sft" and not record.decided):
        return [NO_ROW[record.choice]]
    return []


def prompt_only(record: Record, shape: Shape = conversational) -> Iterator[Row]:
    """TRL's prompt-only."""
    prompt, _ = _prompt_and_completion(record.messages, "", shape)
    yield {"prompt": prompt, **record.marks()}
