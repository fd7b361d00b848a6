"""The web server with a tiny model in this process, for the tests that speak HTTP to it."""

import socket
import threading

from playground import server
from playground.chat.session import Chat
from playground.models import loading
from playground.people.admins import AdminLink
from playground.serving.engine import Engine
from playground.settings import Settings
from playground.store import Store
from playground.web import http_server

USUAL = {
    "threads": 1,
    "chat": {"reply_tokens": 8},
    "dtype": "float32",
    "decode_format": "float32",
    "port": 0,
    "round": {"auto": False},
    "limits": {"request_seconds": 3, "unread_seconds": 5, "requests_per_minute": 100_000},
}


class Site:
    """Serves from the start; `url`, `store`, `engine`, `chat`, `settings`, and `admin_path()`."""

    def __init__(self, folder, **changes):
        self.settings = Settings(model=str(folder), _env_file=None, **USUAL).with_values(**changes)
        self.store = Store()
        self.engine = Engine(
            self.store, self.settings, loading.load_trunk(self.settings), loading.load_tokenizer(self.settings)
        ).start()
        sock = socket.create_server(("127.0.0.1", 0))
        self.port = sock.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.chat = Chat(self.store, self.engine, self.settings)
        self.app = server.create(self.settings, self.store, self.engine, self.chat)
        self._web = http_server.Web(self.app, self.engine.close, self.settings.limits.request_seconds)
        self._thread = threading.Thread(target=self._web.run, args=([sock],))
        self._thread.start()

    def admin_path(self):
        """The path of a new admin link, as after a restart."""
        self.app.state.admin_link = AdminLink()
        return f"/admin/{self.app.state.admin_link.issue()}"

    @property
    def blocks(self):
        """Gradio's, which is mounted."""
        return next(route.app for route in self.app.routes if route.path == "").blocks

    def stop(self):
        self._web.should_exit = True
        self._thread.join(20)
