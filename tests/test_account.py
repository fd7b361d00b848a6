"""Who is signed in, and the open invitations, as the page of an app with users shows them."""

import pytest

from playground.people.admins import Admins
from playground.people.users_file import UsersFile, new_invitation
from playground.settings import Settings
from playground.store import Store
from playground.ui import account
from playground.ui.account import Invitations
from playground.ui.control import Control
from playground.ui.notice import Notice
from playground.ui.quick_gradio import gradio as gr
from playground.ui.status_bar import StatusBar
from playground.ui.words import Words
from tests.controls import OWNER, STRANGER, Engine, Request


@pytest.fixture
def fold(tmp_path):
    """The fold of an app with two users: boss is an admin, ann an annotator."""
    users = UsersFile(tmp_path / "users")
    settings, store = Settings(_env_file=None).with_values(people={"users": str(users.path)}), Store()
    for name, role, token in (("boss", "admin", OWNER), ("ann", "annotator", STRANGER)):
        users.change(lambda content, n=name, r=role: content.with_user(n, r, "-"))
        user = users.content().named(name)
        store.begin_sign_in(user.id, token, user.stamp, 0)
    with gr.Blocks():
        notice = Notice()
        control = Control(settings, store, Admins(settings, store), StatusBar(settings, store, Engine), notice)
        return Invitations(control, notice)


def invite(fold, role="annotator", by="root", days=1):
    _, invitation = new_invitation(role, days, by)
    fold.control.admins.users.change(lambda content: content.with_invitation(invitation))
    return invitation


def listed(fold, updates):
    return [text for text, _ in updates[fold.list]["choices"]]


def test_an_admin_reads_open_invitations_and_takes_one_back(fold):
    """Who had made a link by mistake could only edit the file."""
    assert fold.on_load(Request())[fold.fold]["visible"]
    first, second = invite(fold), invite(fold, "admin", "")
    invite(fold, days=-1)
    seen = fold.on_open(Request())
    assert [text.split(" 20")[0] for text in listed(fold, seen)] == ["annotator, made by root, until", "admin, until"]
    assert seen[fold.take_back]["visible"] and not seen[fold.none]["visible"]
    assert fold.on_take_back(first.short, False, Request()) == gr.skip(), "the admin was not sure"
    assert "Pick an invitation first." in fold.on_take_back(None, True, Request())[fold.notice.html]
    done = fold.on_take_back(first.short, True, Request())
    assert "Taken back" in done[fold.notice.html] and len(listed(fold, done)) == 1
    assert fold.control.admins.users.content().open_invitations == (second,)
    again = fold.on_take_back(first.short, True, Request())
    assert "no such invitation any more" in again[fold.notice.html]


def test_nobody_else_sees_or_takes_back_an_invitation(fold):
    invitation = invite(fold)
    assert not fold.on_load(Request(STRANGER))[fold.fold]["visible"]
    assert fold.on_open(Request(STRANGER)) == gr.skip()
    with pytest.raises(gr.Error):
        fold.on_take_back(invitation.short, True, Request(STRANGER))
    assert fold.control.admins.users.content().open_invitations == (invitation,)


def test_a_users_name_and_role_are_told_with_the_way_out(fold):
    admins = fold.control.admins
    assert admins.user(fold.control.annotator(Request())).name == "boss"
    assert admins.user(admins.store.annotator("z" * 43)) is None
    html = account.who_html("<ann>", "annotator", Words())
    assert 'href="sign-out"' in html and "<b>&lt;ann&gt;</b>" in html
    assert "You are signed in as &lt;ann&gt; (annotator)." in html
    assert "退出登录" in account.who_html("ann", "viewer", Words("zh-CN"))
