"""The one durable write: a file is whole or absent, whatever dies when."""

import errno
import json
import os
from pathlib import Path
from threading import get_ident
from typing import Any

from pipelines.errors import DiskFull
from storage.failpoints import passing


def write_durably(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Replace `path` atomically: temporary file, flush, fsync, rename, fsync of the folder.

    Raises `DiskFull` (and leaves the old file as it was) when there is no space.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{get_ident()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            passing("durable.written")
            os.fsync(file.fileno())
        passing("durable.synced")
        temporary.replace(path)
        passing("durable.renamed")
        sync_folder(path.parent)
        passing("durable.done")
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"no space left to write {path.name}; free some on {path}") from error
        raise


def write_json(path: Path, value: Any, *, mode: int = 0o644) -> None:
    """Write `value` as JSON, durably."""
    content = json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True, allow_nan=False)
    write_durably(path, content.encode(), mode=mode)


def sync_folder(folder: Path) -> None:
    """Make renames and new names in `folder` survive a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
