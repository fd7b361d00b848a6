"""The schema of an empty database in one step. The migrations make it once in each process of tests; one after the
other they take several times as long as what they make.
"""

from functools import cached_property

from sqlite_utils import Database, Migrations


class Migrated:
    """Does what `migrations` do."""

    def __init__(self, migrations: Migrations) -> None:
        self._migrations = migrations

    def apply(self, db: Database) -> None:
        if db.execute("select 1 from sqlite_master").fetchone():
            self._migrations.apply(db)
            return
        for statement in self._statements:
            db.execute(statement)

    @cached_property
    def _statements(self) -> list[str]:
        made = Database(memory=True)
        self._migrations.apply(made)
        statements = [line for line in made.conn.iterdump() if line not in ("BEGIN TRANSACTION;", "COMMIT;")]
        # rows come after all tables that they may name
        return sorted(statements, key=lambda statement: not statement.startswith("CREATE TABLE"))
