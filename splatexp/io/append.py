"""Files that grow by one record at a time."""

import errno
from pathlib import Path


class Growing:
    """The open end of a file: a record is with the system when `add` returns; only the last can be torn."""

    def __init__(self, path: Path):
        self._file = open(path, "ab", buffering=0)

    def add(self, record: bytes) -> None:
        """Add a record by one write.  Raises: OSError, also when only a part had room."""
        done = self._file.write(record)
        if done != len(record):
            name = self._file.name
            raise OSError(errno.ENOSPC, f"could not write {name}: {done} of {len(record)} bytes had room")

    def close(self) -> None:
        """No more records."""
        self._file.close()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self.close()
