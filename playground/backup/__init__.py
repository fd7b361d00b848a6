"""Snapshots of the database and the versions, kept where a lost disk does not reach them, and brought back at a start
with an empty data folder.
"""

from playground.backup.keeper import Backup
from playground.backup.lease import Lease
from playground.backup.status import Status
from playground.backup.target import BadTarget

__all__ = ["BadTarget", "Backup", "Lease", "Status"]
