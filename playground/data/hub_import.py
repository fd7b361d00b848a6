"""A dataset of the hub into the store while the app runs, for the page: one at a time, in a thread of its own."""

import logging
import threading
from dataclasses import dataclass, field, replace

from playground.data import hub, importing
from playground.data.importing import Report
from playground.data.raw_rows import CannotRead
from playground.store import Store
from playground.system.messages import Message, UserFacingError, plain
from playground.system.safe_logging import describe_error

log = logging.getLogger(__name__)

MOST_ROWS = 100_000  # of a dataset; the command line takes more
ADDRESS_CHARS = 300


@dataclass(frozen=True)
class ImportState:
    """The newest import. `name`: the dataset's, as the person wrote it until it is found."""

    name: str
    running: bool = True
    report: Report = field(default_factory=Report)
    error: Message | None = None


class HubImport:
    """The import of datasets into `store`."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.state: ImportState | None = None  # None: there was none
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self, address: str, split: str | None, most_rows: int) -> bool:
        """Begin; False where another one still runs. `address`: OWNER/NAME, or as `hub.find`."""
        with self._starting:
            if self.state is not None and self.state.running:
                return False
            self.state = ImportState(address)
            self._thread = threading.Thread(
                target=self._run, args=(address, split, most_rows), name="hub-import", daemon=True
            )
            self._thread.start()
            return True

    def join(self) -> None:
        """Wait until it has ended."""
        if self._thread is not None:
            self._thread.join()

    def _run(self, address: str, split: str | None, most_rows: int) -> None:
        error = None
        try:
            self._load(address, split, most_rows)
        except UserFacingError as refused:  # the dataset's, and the store's
            error = refused.message
        except CannotRead as refused:
            error = plain(str(refused))
        except Exception as unexpected:
            log.error("the import of a dataset failed: %s", describe_error(unexpected))
            error = Message("The import failed; the log says more.")
        assert self.state is not None, "start has set it"
        self.state = replace(self.state, running=False, error=error)

    def _load(self, address: str, split: str | None, most_rows: int) -> None:
        where = address if "://" in address else f"{hub.PREFIX}datasets/{address}"
        dataset = hub.find(where, split)
        self.state = state = ImportState(dataset.name)
        importing.load(self.store, dataset, dataset.name, most_rows=min(most_rows, MOST_ROWS), report=state.report)
