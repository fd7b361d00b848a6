"""`python -m playground.data export|import|sources|remove|queue|quality`: data out of a Nudge database and into it. It
works beside a running app.

Exit codes: 0 all is done; 1 nothing could be done, and why is said; 2 the command line is wrong; 3 some rows were bad,
and the others are in.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from playground.data import columns, export, import_command, importing, quality, queue_report, times, writers
from playground.data.card import undecided_file
from playground.data.export import Export
from playground.data.import_command import counted
from playground.data.raw_rows import CannotRead
from playground.settings import SettingsError, read
from playground.store import CHOICES, Filters, Store, StoreError
from playground.system import pushing
from playground.system.hub import HubError
from playground.system.pushing import Push


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    arguments = parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except (CannotRead, StoreError, SettingsError, HubError) as error:
        print(error, file=sys.stderr)
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
    except KeyboardInterrupt:
        print("Stopped. What an import has read is kept; begin it again to go on.", file=sys.stderr)
    return 1


# -- what can be said


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m playground.data",
        description="Data out of a database and into it.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    _export_command(commands.add_parser("export", help="what people judged, as files for other programs"))
    _import_command(commands.add_parser("import", help="pairs, demonstrations and prompts from files or the hub"))
    sources = commands.add_parser("sources", help="what was imported")
    remove = commands.add_parser("remove", help="take an import back")
    remove.add_argument("source", help="the name under which it was imported")
    queue = commands.add_parser("queue", help="how far the prompt queue is")
    queue.add_argument("--reopen", action="store_true", help="offer prompts that too many have skipped once more")
    people = commands.add_parser("quality", help="how people vote, and how far they agree")
    people.add_argument("--leave-out", type=_number, metavar="PERSON", help="leave this person out of training")
    people.add_argument("--take-in", type=_number, metavar="PERSON", help="take this person in again")
    runs = ((sources, run_sources), (remove, run_remove), (queue, run_queue), (people, run_quality))
    for command, run in runs:
        command.set_defaults(run=run)
        _data_dir(command)
    top.epilog = "\n".join(command.format_usage() for command in commands.choices.values())
    return top


def _data_dir(command: argparse.ArgumentParser) -> None:
    command.add_argument("--data-dir", type=Path, help="the app's folder (default: NUDGE_DATA_DIR, .env, or data)")


def _export_command(command: argparse.ArgumentParser) -> None:
    command.description = "Writes what people judged into a new folder, with a dataset card."
    command.set_defaults(run=run_export)
    command.add_argument("--out", type=Path, required=True, help="a new or an empty folder")
    command.add_argument(
        "--format",
        choices=export.FORMATS,
        default="everything",
        help="TRL's preference, kto (unpaired), sft (prompt and completion) or prompts; everything (default) has "
        "pairs, thumbs, edits and prompts with all that is known of them",
    )
    command.add_argument("--file-type", choices=list(writers.WRITERS), default="jsonl", help="parquet needs pyarrow")
    command.add_argument("--plain", action="store_true", help="one text (Human: … Assistant: …) in place of messages")
    command.add_argument("--implicit-prompt", action="store_true", help="preference: the prompt within both replies")
    command.add_argument("--imported", action="store_true", help="the rows that were imported, in place of people's")
    command.add_argument("--license", type=_license, help="of the dataset, as the hub names it, such as cc-by-4.0")
    _data_dir(command)
    to_hub = command.add_argument_group("to the hub, with a token in HF_TOKEN that may write there")
    to_hub.add_argument("--push", metavar="OWNER/NAME", help="push the files to this dataset, which is made private")
    to_hub.add_argument("--public", action="store_true", help="push to a dataset that everybody can see")
    to_hub.add_argument("--force", action="store_true", help="also where the dataset was not pushed from here")
    narrow = command.add_argument_group("which rows")
    narrow.add_argument("--version", type=_number, help="one of the replies is by this version; 0 is the base")
    narrow.add_argument("--choice", choices=[choice for choice in CHOICES if choice != "skip"], help="of the vote")
    narrow.add_argument("--tag", help="a reason that the person gave")
    narrow.add_argument("--person", type=_number, help="by number")
    narrow.add_argument(
        "--since", type=_time, help="said at this time or later, such as 2026-11-27 or 2026-11-27T08:00Z"
    )
    narrow.add_argument("--until", type=_end, help="said before this time; a day alone is in it")
    narrow.add_argument("--text", help="in the message or in a reply")
    narrow.add_argument("--model", help="the base model that wrote the replies, as `base_model` names it")


def _import_command(command: argparse.ArgumentParser) -> None:
    command.description = (
        "Reads files with one row a pair, demonstration or prompt: .jsonl, .csv, .parquet, or a .json array. Columns "
        "of TRL, UltraFeedback (binarized), HH-RLHF, PandaLM and of this command's export are known. A row that is "
        "there already is not added again. A dataset of the hub is named like hf://datasets/OWNER/NAME, with @REVISION "
        "and /PATH behind it where you want those; HF_TOKEN is the token for a private or a gated one."
    )
    command.set_defaults(run=run_import)
    command.add_argument("files", nargs="+", metavar="FILE", help="or a dataset's address, hf://datasets/OWNER/NAME")
    command.add_argument("--split", help="of a dataset (default: train, or the only one)")
    command.add_argument(
        "--source",
        help="the name that the rows are kept under (default: each file's name; a dataset's, with its commit; "
        "what export --imported wrote keeps the names that it had)",
    )
    command.add_argument(
        "--weight",
        type=_weight,
        help="of a pair, beside a vote's 1 (default: 1); pairs that are there already get it too",
    )
    command.add_argument("--kind", choices=list(columns.KINDS), help="what of each row is taken (default: the most)")
    command.add_argument(
        "--max-rows", type=_number, default=importing.MOST_ROWS, help="of a file or a dataset (default: 1,000,000)"
    )
    _data_dir(command)


def _number(text: str) -> int:
    number = int(text)
    if not 0 <= number < 2**63:
        raise ValueError
    return number


def _weight(text: str) -> float:
    weight = float(text)
    if not 0 < weight <= 1000:
        raise argparse.ArgumentTypeError("a weight is above 0 and at most 1000")
    return weight


def _license(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,60}", text):
        raise argparse.ArgumentTypeError("a licence is named like cc-by-4.0 or mit")
    return text


def _end(text: str) -> str:
    return _time(text, end=True)


def _time(text: str, end: bool = False) -> str:
    """A time as the store writes it, in UTC. One without a zone is in UTC."""
    try:
        return times.stored(text, end)
    except ValueError:
        raise argparse.ArgumentTypeError("a time is written like 2026-11-27 or 2026-11-27T08:00Z") from None


# -- what is done


def open_store(arguments: argparse.Namespace, create: bool = False) -> Store:
    settings = read([])
    if arguments.data_dir is not None:
        settings = settings.with_values(data_dir=arguments.data_dir)
    return Store(settings.database, create=create)


def run_export(arguments: argparse.Namespace) -> int:
    names = ("version", "choice", "tag", "person", "since", "until", "text", "model")
    filters = Filters(**{name: getattr(arguments, name) for name in names})
    if arguments.imported and filters != Filters():
        raise CannotRead("--imported takes all rows that were imported; it cannot be narrowed.")
    wanted = Export(
        format=arguments.format,
        file_type=arguments.file_type,
        plain=arguments.plain,
        implicit=arguments.implicit_prompt,
        filters=filters,
        imported=arguments.imported,
        license=arguments.license,
    )
    push = Push(arguments.push, "dataset", arguments.public, arguments.force) if arguments.push else None
    if push:
        pushing.check(push)
    tally = export.write(open_store(arguments), wanted, arguments.out)
    for file, rows in tally.rows.items():
        print(f"{arguments.out / file}: {counted(rows, 'row')}")
    if (undecided := undecided_file(tally.rows)) is not None:
        print(
            f"Neither reply is better (a tie, or both bad) in {counted(tally.rows[undecided], 'pair')}, left out "
            f"of preference. See {undecided}."
        )
    for line in tally.left_out_lines():
        print(line)
    if len(tally.bases) > 1:
        models = ", ".join(f"{model} ({n:,})" for model, n in sorted(tally.bases.items()))
        print(f"The replies are by several base models: {models}. Each row names its own; --model takes one alone.")
    if not tally.rows:
        print("No row fits." if arguments.imported else "No row fits. What was imported is exported with --imported.")
    if push:
        print(pushing.send(push, arguments.out, export.FILES).said())
    return 0


def run_import(arguments: argparse.Namespace) -> int:
    return import_command.run(open_store(arguments, create=True), arguments)


def run_sources(arguments: argparse.Namespace) -> int:
    sources = open_store(arguments).imported_sources()
    if not sources:
        print("Nothing was imported.")
    for row in sources:
        line = f"{row['source']}: {row['kind']}s {row['rows']:,}, weight {row['weight']:g}, from {row['created']}"
        if row["url"]:
            line += f", {row['url']}, split {row['split']}, licence {row['license'] or 'not named'}"
        print(line)
    return 0


def run_remove(arguments: argparse.Namespace) -> int:
    removed = open_store(arguments).remove_imported(arguments.source)
    print(f"{arguments.source}: {counted(removed, 'row')} removed")
    return 0 if removed else 1


def run_queue(arguments: argparse.Namespace) -> int:
    store = open_store(arguments)
    if arguments.reopen:
        print(f"{counted(store.reopen_prompts(), 'prompt')} offered once more")
    for line in queue_report.lines(store):
        print(line)
    return 0


def run_quality(arguments: argparse.Namespace) -> int:
    store = open_store(arguments)
    for person, left_out in ((arguments.leave_out, True), (arguments.take_in, False)):
        if person is not None:
            store.leave_out_person(person, left_out)
            print(f"person {person} is {'left out of training' if left_out else 'in training again'}")
    found = quality.read(store)
    names = {row["id"]: row["name"] for row in store.known_as(found.everybody) if row["name"]}
    for line in quality.lines(found, names):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
