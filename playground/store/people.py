"""Who votes: annotators, known by the hash of their cookie, and who of them has signed in under a name."""

import hashlib
import time

from playground.store.file import now


class People:
    """Part of `Store`."""

    def annotator(self, token, kind="anonymous"):
        """The annotator whose cookie is `token`, made on the first visit."""
        digest = hashlib.sha256(token.encode()).hexdigest()
        found = self.row("select id from annotator where token_hash = ?", digest)
        if found:
            return found["id"]
        with self.writing() as db:
            db.execute(
                "insert or ignore into annotator (token_hash, kind, created) values (?, ?, ?)", [digest, kind, now()]
            )
        return self.row("select id from annotator where token_hash = ?", digest)["id"]

    def person(self, annotator):
        """An annotator's row."""
        return self.row("select * from annotator where id = ?", annotator)

    def renew(self, annotator, token):
        """From now on this annotator's cookie is `token`; whoever knows the one before is another person."""
        with self.writing() as db:
            db["annotator"].update(annotator, {"token_hash": hashlib.sha256(token.encode()).hexdigest()})

    def sign_in(self, annotator, name, until):
        """This person is `name` until the moment `until`, in unix seconds."""
        with self.writing() as db:
            db["annotator"].update(annotator, {"name": name, "signed_in_until": until})

    def sign_out(self, annotator):
        with self.writing() as db:
            db["annotator"].update(annotator, {"name": None, "signed_in_until": None})

    def signed_in(self, annotator):
        """The name this person signed in under, or None once that has lapsed."""
        row = self.person(annotator)
        return row["name"] if row and row["name"] and row["signed_in_until"] > time.time() else None
