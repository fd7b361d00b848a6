"""The fold "Vote quality" of the tab *Data*, for admins: how each person votes, who agrees with whom, and which people
are left out of training. The figures are `playground/data/quality.py`'s; what a button decides is handled in `data.py`.
"""

from collections.abc import Callable, Mapping
from html import escape

import gradio as gr

from playground.data import quality as figures
from playground.data.quality import PersonQuality, Quality, number
from playground.people.names import names_of
from playground.people.users_file import UsersFile
from playground.store import Store
from playground.ui import words
from playground.ui.handlers import GESTURE, Updates
from playground.ui.text import one_line, visible
from playground.ui.words import Words

UNLIKELY = 0.01  # p of the sign test below which a share of sides is marked
LISTED_VERSIONS = 8  # of those that have learnt from somebody, the newest

COLUMNS = (
    words.mark("Person"),
    words.mark("Votes"),
    words.mark("Seconds"),
    words.mark("Left side"),
    words.mark("Streak"),
    words.mark("Ties"),
    words.mark("Judged twice"),
    words.mark("κ"),
)
FEW_PAIRS = 20  # on which α is within .4 of its mean over chance in 95 of 100 cases (people alike on 7 of 10 pairs)
FEW = words.mark("On so few pairs these figures are mostly chance.")
EXPLAINED = words.mark(
    "Seconds: the median time to a vote. Left side: share of the picks, with the p-value of a sign test. Streak: most "
    "picks of one side in a row. Judged twice: pairs that somebody else judged too, and how many alike; κ is Cohen's, "
    "with everybody else. α is Krippendorff's, over what rounds learn from."
)


class QualityFold:
    """Made inside the current Blocks; hidden until an admin opens the tab."""

    def __init__(self, store: Store, users: UsersFile | None) -> None:
        self.store = store
        self.users = users
        with gr.Accordion(words.label("Vote quality"), open=False, visible=False, elem_id="quality-fold") as self.fold:
            self.html = gr.HTML(elem_id="quality", padding=False)

    def wire(self, is_admin: Callable[[gr.Request], bool]) -> None:
        """Read the figures when an admin opens the fold."""

        def on_open(request: gr.Request) -> Updates:
            return self.updates(words.of(request)) if is_admin(request) else gr.skip()

        self.fold.expand(on_open, None, [self.html], **GESTURE)

    def updates(self, translate: Words) -> Updates:
        """The figures as they are now."""
        quality = figures.read(self.store)
        learnt = self.store.versions_of_people()
        names = names_of(self.store, self.users, quality.everybody)
        return {self.html: quality_html(quality, names, learnt, translate)}


def quality_html(quality: Quality, names: Mapping[int, str], learnt: Mapping[int, list[int]], translate: Words) -> str:
    """The table of people and those who agree. `names`: of people who have one. `learnt`: by person, the versions that
    have learnt from theirs.
    """
    if not quality.people:
        return f'<p class="empty">{escape(translate("Nobody has voted yet."))}</p>'
    head = "".join(f"<th>{escape(translate(column))}</th>" for column in COLUMNS)
    rows = "".join(_person_html(person, names, learnt.get(person.person, []), translate) for person in quality.people)
    more = ""
    if quality.more_people:
        more = _line(translate("{n} more {n:person|people} with fewer votes are not listed.", n=quality.more_people))
    return (
        f"{_alpha_html(quality, translate)}"
        f'<div class="table"><table class="quality"><thead><tr>{head}<th></th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{more}"
        f"{_couples_html(quality, names, translate)}{_line(translate(EXPLAINED))}"
    )


def _alpha_html(quality: Quality, translate: Words) -> str:
    """How far everybody agrees."""
    if not quality.pairs and quality.couples:
        return _line(translate("Rounds learn from no pair that two people judged."))
    if not quality.pairs:
        return _line(translate("No pair was judged by two people yet. A prompt queue shows some to a second person."))
    alpha = translate(
        "Agreement: α {alpha} on {n} {n:pair|pairs} that two people judged.",
        alpha=number(quality.alpha),
        n=quality.pairs,
    )
    few = f" {translate(FEW)}" if quality.pairs < FEW_PAIRS else ""
    return f'<p class="alpha">{escape(alpha + few)}</p>'


def _person_html(person: PersonQuality, names: Mapping[int, str], versions: list[int], translate: Words) -> str:
    name = person_name(person.person, names, translate)
    out = f' <i class="chip skipped">{escape(translate("the person is left out"))}</i>' if person.left_out else ""
    seconds = "–" if person.seconds is None else f"{person.seconds:.1f}"
    side = "–"
    if person.decided:
        side = f"{person.left / person.decided:.0%} <small>p {person.side_p:.3f}</small>"
        if person.side_p < UNLIKELY:
            side = f'<b class="unlikely">{side}</b>'
    others = person.others
    twice = f"{others.agreed:,}/{others.pairs:,}" if others.pairs else "–"
    kappa = "–" if others.kappa is None else number(others.kappa)
    ties = f"{person.ties / person.votes:.0%}"
    cells = (f"{person.votes:,}", seconds, side, f"{person.streak:,}", ties, twice, kappa)
    numbers = "".join(f"<td>{cell}</td>" for cell in cells)
    button = _button_html(person, name, translate)
    learnt = f"<small>{escape(learnt_text(versions, translate))}</small>" if versions else ""
    return f"<tr><th>{escape(one_line(name))}{out}{learnt}</th>{numbers}<td>{button}</td></tr>"


def _button_html(person: PersonQuality, name: str, translate: Words) -> str:
    """The button that leaves a person out of training, or takes them in again."""
    if person.left_out:
        where, text, question = "in", translate("Take in again"), ""
    else:
        where, text = "out", translate("Leave out")
        question = translate("Leave everything that {name} says out of training, from the next round on?", name=name)
    asked = f' data-question="{escape(visible(question))}"' if question else ""
    return f'<button type="button" data-decision="{where} person {person.person}"{asked}>{escape(text)}</button>'


def _couples_html(quality: Quality, names: Mapping[int, str], translate: Words) -> str:
    items = []
    for couple in quality.couples:
        text = translate(
            "{first} and {second}: κ {kappa}, alike on {agreed} of {n} {n:pair|pairs}",
            first=person_name(couple.first, names, translate),
            second=person_name(couple.second, names, translate),
            kappa=number(couple.agreement.kappa),
            agreed=couple.agreement.agreed,
            n=couple.agreement.pairs,
        )
        items.append(f"<li>{escape(one_line(text))}</li>")
    return f'<ul class="couples">{"".join(items)}</ul>' if items else ""


def _line(text: str) -> str:
    return f'<p class="quality-note">{escape(text)}</p>'


def person_name(person: int, names: Mapping[int, str], translate: Words) -> str:
    """What an admin calls somebody: the name, where there is one."""
    return names.get(person) or translate("person {n}", n=person)


def learnt_text(versions: list[int], translate: Words) -> str:
    """Which versions have learnt from something, such as "learnt by v3, v4"."""
    listed = ", ".join(f"v{version}" for version in versions[-LISTED_VERSIONS:])
    if len(versions) > LISTED_VERSIONS:
        listed = f"…, {listed}"
    return translate("learnt by {versions}", versions=listed)
