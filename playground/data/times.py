"""Times as people write them, and as the store writes them: ISO 8601 in UTC, to the millisecond."""

import re
from datetime import UTC, date, datetime, timedelta

DAY = timedelta(days=1)
MOST_CHARS = 40
YEARS = range(1970, 9000)
# the year first, or day and month as full stops order them; with strokes and the year last nobody knows which is which
YEAR_FIRST = re.compile(r"(\d{4})([-/.]|年)(\d{1,2})(?:\2|月)(\d{1,2})日?(?=$|[T\s])", re.ASCII)
DAY_FIRST = re.compile(r"(\d{1,2})\.(\d{1,2})\.(\d{4})(?=$|[T\s])", re.ASCII)
# Python takes any character for the one before the hour, also the + of a zone, and a week for its Monday
DAY_OF_ISO = re.compile(r"(\d{4}-\d\d-\d\d|\d{8})($|[Tt_\s])", re.ASCII)
ONE_DIGIT_HOUR = re.compile(r"(?<=[T\s])(?=\d:)", re.ASCII)


def stored(text: str, end: bool = False) -> str:
    """A time in the store's form. One without a zone is in UTC. With `end` it is what something goes on to: a day alone
    is then in it, so it becomes the first moment of the next day. ValueError where it is no time.
    """
    text = text.strip()
    if len(text) > MOST_CHARS:
        raise ValueError
    text = _iso(text)
    if not DAY_OF_ISO.match(text):
        raise ValueError
    time = datetime.fromisoformat(text)
    if time.year not in YEARS:
        raise ValueError
    if end and _is_day(text):
        time += DAY
    time = time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _iso(text: str) -> str:
    """`text` with day and hour as ISO 8601 has them."""
    if match := YEAR_FIRST.match(text):
        year, _, month, day = match.groups()
    elif match := DAY_FIRST.match(text):
        day, month, year = match.groups()
    else:
        return text
    hour = ONE_DIGIT_HOUR.sub("0", text[match.end() :], count=1)
    return f"{year}-{int(month):02}-{int(day):02}{hour}"


def _is_day(text: str) -> bool:
    """Whether this time, as ISO 8601 has it, is a day alone."""
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def spoken(time: str, end: bool = False) -> str:
    """A time of the store for people, in UTC: the day alone where it is midnight. With `end` it is the last day that
    something goes on to.
    """
    moment = datetime.fromisoformat(time)
    if moment.time() != datetime.min.time():
        return moment.strftime("%Y-%m-%d %H:%M")
    return (moment - (DAY if end else timedelta())).strftime("%Y-%m-%d")
