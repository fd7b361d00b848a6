"""Policy versions: reserved by a round, published or refused, live or rolled back. Exactly one is live."""

import json

from playground.store.errors import StoreError
from playground.store.file import now


class Policies:
    """Part of `Store`."""

    def policies(self):
        """All versions, newest first."""
        return self.rows("select * from policy order by version desc")

    def live_policy(self):
        return self.row("select * from policy where status = 'live'")

    def policy(self, version):
        return self.row("select * from policy where version = ?", version)

    def round_policy(self, round_id):
        """The version that a round made, or None."""
        return self.row("select * from policy where round = ?", round_id)

    def add_policy(self, round_id, owner, parent):
        """Reserve the next version number for a round; the number is never used again. Repeating it for the same round
        gives the same one.
        """
        with self.writing() as db:
            self._held(db, round_id, owner)
            row = db.execute("select version from policy where round = ?", [round_id]).fetchone()
            if row:
                return row[0]
            version = db.execute("select max(version) + 1 from policy").fetchone()[0]
            db["policy"].insert(
                {"version": version, "parent": parent, "status": "candidate", "round": round_id, "created": now()}
            )
            return version

    def publish(self, round_id, owner, version, path, sha256, report):
        """One transaction: the lease is still held, the version is complete, it becomes live, the one before it
        retires, the round ends.

        `sha256` is that of the whole version, as `adapters.write` returns it.
        """
        with self.writing() as db:
            self._held(db, round_id, owner)
            db["policy"].update(version, {"path": str(path), "sha256": sha256, "gate_report": json.dumps(report)})
            self._make_live(db, version, "retired")
            db["round"].update(round_id, {"state": "published", "phase": "publish", "ended": now()})

    def refuse(self, round_id, owner, version, path, sha256, report, reason):
        """The gate said no: the version is kept, marked rejected, and the round ends with the reason."""
        with self.writing() as db:
            self._held(db, round_id, owner)
            db["policy"].update(
                version,
                {
                    "status": "rejected",
                    "path": str(path),
                    "sha256": sha256,
                    "gate_report": json.dumps(report),
                    "reason": str(reason),
                },
            )
            db["round"].update(round_id, {"state": "refused", "reason": reason.dumps(), "ended": now()})

    def reject_live(self, version, reason, fallback, weights_sha256=None):
        """The server could not load the live version: mark it rejected with the reason, and with the hash of its
        weights where they could be read, and make `fallback` live again."""
        with self.writing() as db:
            if db["policy"].get(version)["status"] == "live":
                self._make_live(db, fallback, "rejected")
                db["policy"].update(version, {"reason": reason, "weights_sha256": weights_sha256})

    def quarantined(self, version, weights_sha256):
        """The earlier version with the same weights that a server has rejected, or None. One that the gate refused may
        come again.
        """
        return self.row(
            """select p.version, p.reason from policy p join round r on r.id = p.round
                           where p.weights_sha256 = ? and p.version != ? and p.status = 'rejected'
                             and r.state = 'published'""",
            weights_sha256,
            version,
        )

    def last_good_before(self, version):
        """The nearest of the versions that `version` descends from which no server has rejected; at last the base,
        0."""
        parents = {row["version"]: (row["parent"], row["status"]) for row in self.policies()}
        seen = {version}
        while version:
            version = parents[version][0] or 0
            if version in seen or parents[version][1] != "rejected":
                break
            seen.add(version)
        return version

    def roll_back(self, version):
        """Make an older version live again; the one that was live is marked rolled back."""
        with self.writing() as db:
            if db["policy"].get(version)["status"] == "rejected":
                raise StoreError("Version v{n} was rejected and cannot go live.", n=version)
            self._make_live(db, version, "rolled_back")

    @staticmethod
    def _make_live(db, version, old_status):
        db.execute("update policy set status = ? where status = 'live' and version != ?", [old_status, version])
        db["policy"].update(version, {"status": "live"})
