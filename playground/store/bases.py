"""Which base model answers: votes on the replies of another one do not count while it does."""

from playground.store.database import Database, now


class Bases(Database):
    """Part of `Store`."""

    def use_base(self, base_hash: str, model: str) -> None:
        """From now on votes count that are on replies of this base model, known by its hash; `model` is its name."""
        with self.writing() as db:
            last = db.execute("select base_hash from base order by id desc limit 1").fetchone()
            if last is None or last[0] != base_hash:
                db.table("base").insert({"base_hash": base_hash, "model": model, "since": now()})
