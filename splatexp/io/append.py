"""Files to which one record at a time is appended."""

import errno
from pathlib import Path


class AppendFile:
    """A file that is open for appending.

    The operating system has a record when `append` returns. So whatever ends the process, only the last record
    can be incomplete.
    """

    def __init__(self, path: Path):
        self._file = open(path, "ab", buffering=0)

    def append(self, record: bytes) -> None:
        """Append a record in one write.

        Raises: OSError, also where the disk had room for a part of the record only.
        """
        written = self._file.write(record)
        if written != len(record):
            name = self._file.name
            raise OSError(errno.ENOSPC, f"could not write {name}: only {written} of {len(record)} bytes fit")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self.close()
