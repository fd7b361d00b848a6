"""Fixtures that many files share: the app as a subprocess and the browser before it."""

from tests.browsing import app, browser, paced, size, visit

__all__ = ["app", "browser", "paced", "size", "visit"]
