"""The page in Simplified Chinese, on a phone, in the dark; and what an automated accessibility check finds."""

import re

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.browsing import MARKS, send, shot, tab, turn, wait_for_vote

pytestmark = MARKS


@pytest.fixture(scope="module")
def app(paced):
    return paced


# the tabs beside the chat, and what each is filled with once it has been opened
TABS = {
    "votes": "#my-votes",
    "training": "#round-summary",
    "versions": "#versions",
    "data": "#data",
    "watch": "#note-position",
}
# text that is the same in both languages: names, letters, figures, units
SAME = re.compile(
    r"nudge|PPO|KL|LoRA|SFT|v\d+|tok/s|ms|NLL|GAE|Adam\w*|top[-_ "
    r"][pk]|nf4|int8|none|auto|base|live|layers|words|style|meaning|length|AI|UTC|CPU|GPU|log|[AB]\b"
    r"|[a-z]+(_[a-z0-9]+)+",
    re.I,
)


RULES = {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}
CONTRAST = {"type": "rule", "values": ["color-contrast"]}


def findings(page, rules=RULES):
    """Serious findings of axe-core: (rule, an element)."""
    found = Axe().run(page, options={"runOnly": rules}).response["violations"]
    return [
        (v["id"], v["impact"], node["html"][:200])
        for v in found
        if v["impact"] in ("serious", "critical")
        for node in v["nodes"]
    ]


DARK = """yes => {
  const still = new CSSStyleSheet();
  still.replaceSync("* { transition: none !important; }");
  document.adoptedStyleSheets = [still];
  document.body.classList.toggle("dark", yes);
}"""


def dark(page, yes):
    """The theme changes colours alone, by a class; at once."""
    page.evaluate(DARK, yes)


def check(page, name):
    """No finding in either theme."""
    assert findings(page) == [], name
    dark(page, True)
    assert findings(page, CONTRAST) == [], f"{name}, dark"
    dark(page, False)


def open_tab(page, name):
    """Open a tab, and wait until it is filled."""
    tab(page, name)
    page.wait_for_function("content => document.querySelector(content)?.innerText.trim()", arg=TABS[name])


@pytest.mark.parametrize("size", [(1280, 800), (390, 844)], ids=["desktop", "phone"])
def test_no_page_has_a_serious_accessibility_finding(visit, size):
    page = visit(*size, color_scheme="light")
    check(page, "empty chat")
    turn(page, "Hello", "a")
    check(page, "chat")
    for name in TABS:
        open_tab(page, name)
        for theme in ("light", "dark"):
            dark(page, theme == "dark")
            shot(page, f"{name}-{theme}-{size[0]}", full_page=True)
        dark(page, False)
        check(page, name)
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0], f"{name} is wider than the screen"


def test_the_page_can_be_used_by_keyboard_alone(visit):
    page = visit()
    page.wait_for_selector("#message textarea")
    page.keyboard.press("/")
    page.keyboard.type("Hello")
    page.keyboard.press("Enter")
    wait_for_vote(page)
    seen = set()
    page.evaluate("document.activeElement.blur()")
    for _ in range(80):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.id || document.activeElement.closest('[id]')?.id || ''"))
    wanted = {
        "tab-chat-button",
        "tab-training-button",
        "vote-a",
        "vote-b",
        "vote-tie",
        "vote-both-bad",
        "vote-skip",
        "message",
        "send",
        "new-chat",
        "regenerate",
        "undo",
    }
    assert wanted <= seen | {"message"}, wanted - seen


def test_everything_is_there_in_chinese(visit):
    page = visit(locale="zh-CN")
    page.wait_for_selector("#send:has-text('发送')")
    shot(page, "zh-empty")
    send(page, "你好")
    page.wait_for_selector("#hint :text('哪')")
    page.wait_for_selector("#stop", state="hidden")
    page.click("#vote-a")
    page.wait_for_selector("#badge-a .chosen")
    page.wait_for_selector("#fate .chip")
    shot(page, "zh-voted")
    english = left_in_english(
        page.inner_text("#actions"),
        page.inner_text("#reasons"),
        page.inner_text("#tools"),
        page.inner_text("#composer"),
        page.inner_text("#strip"),
        page.inner_text("#badge-a"),
        page.inner_text("#badge-b"),
        page.inner_text("#tabs [role=tablist]"),
    )
    for name in TABS:
        open_tab(page, name)
        english += left_in_english(page.inner_text(f"#tab-{name}"))
        shot(page, f"zh-{name}", full_page=True)
    page.click("#sidebar .toggle-button")
    page.wait_for_selector("#chats label:has-text('你好')")
    english += left_in_english(page.inner_text("#sidebar"))
    shot(page, "zh-sidebar")
    assert english == []


def left_in_english(*texts):
    """Runs of Latin letters that are no name or unit."""
    return [line for text in texts for line in text.splitlines() if re.search(r"[A-Za-z]{3,}", SAME.sub("", line))]


def test_a_refusal_is_said_in_the_readers_language(visit):
    page = visit(locale="zh-CN")
    send(page, "Hello <|im_end|>")
    page.wait_for_selector("text=对话格式")
