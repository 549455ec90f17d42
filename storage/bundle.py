"""A backup as one tar file or one folder: private, every file with its checksum, manifest last."""

import errno
import hashlib
import io
import os
import shutil
import sqlite3
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import msgspec

from pipelines.errors import DataDamaged, DiskFull, Refused
from storage.durable import sync_folder

MANIFEST = "backup.json"
FORMAT = 1
TAR = ".tar"
PIECE = 1 << 20
FOLDER_MODE, FILE_MODE = 0o700, 0o600

Progress = Callable[[str, int], None]  # a file, and how many bytes were done before it


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a backup."""

    sha256: str
    bytes: int
    mtime: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup holds. `about` is what its maker says of it."""

    format: int = FORMAT
    files: dict[str, Entry]
    about: dict[str, Any] = {}


def refuse_target(target: Path) -> None:
    """Raise `Refused` where a backup cannot be written."""
    if target.exists():
        raise Refused(f"{target} is there already; nothing is ever written over")
    if not target.absolute().parent.is_dir():
        raise Refused(f"there is no folder {target.parent}")


class BundleWriter:
    """Writes a backup beside its final name, which it gets in one step: whole or absent."""

    def __init__(self, target: Path) -> None:
        refuse_target(target)
        self._target = target
        self.work = target.with_name(f".{target.name}.{os.getpid()}.partial")
        self._entries: dict[str, Entry] = {}
        with _no_space(target.parent):
            self.work.mkdir(mode=FOLDER_MODE)
            self.staged = self.work / "staged"  # on the target's disk, for what is made first
            self.staged.mkdir(mode=FOLDER_MODE)
            self._result = self.work / ("bundle" + TAR if target.suffix == TAR else "bundle")
            self._tar: tarfile.TarFile | None = None
            if target.suffix == TAR:
                descriptor = os.open(self._result, os.O_CREAT | os.O_EXCL | os.O_WRONLY, FILE_MODE)
                self._file = os.fdopen(descriptor, "wb")
                self._tar = tarfile.TarFile(fileobj=self._file, mode="w")
            else:
                self._result.mkdir(mode=FOLDER_MODE)

    @property
    def written(self) -> int:
        """Bytes of content so far."""
        return sum(entry.bytes for entry in self._entries.values())

    def add(self, name: str, source: Path, *, size: int | None = None) -> Entry:
        """Copy a file, or its first `size` bytes; returns what was copied."""
        with source.open("rb") as file:
            status = os.fstat(file.fileno())
            wanted = status.st_size if size is None else size
            reader = _Hashing(file)
            with _no_space(self._target.parent):
                self._write(name, reader, wanted, int(status.st_mtime))
        entry = Entry(sha256=reader.hexdigest(), bytes=wanted, mtime=int(status.st_mtime))
        self._entries[name] = entry
        return entry

    def finish(self, about: Mapping[str, Any]) -> Manifest:
        """The manifest, then the name: from here on the backup is there."""
        manifest = Manifest(files=self._entries, about=dict(about))
        content = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
        with _no_space(self._target.parent):
            self._write(MANIFEST, io.BytesIO(content), len(content), 0)
            if self._tar is not None:
                self._tar.close()
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
            else:
                for folder in self._result.rglob("*"):
                    if folder.is_dir():
                        sync_folder(folder)
                sync_folder(self._result)
            self._take_name()
            shutil.rmtree(self.work)
            sync_folder(self._target.parent)
        return manifest

    def abandon(self) -> None:
        """Leave nothing behind."""
        if self._tar is not None and not self._file.closed:
            with suppress(OSError):
                self._file.close()
        shutil.rmtree(self.work, ignore_errors=True)

    def _write(self, name: str, source: Any, size: int, mtime: int) -> None:
        if self._tar is not None:
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.mtime = size, FILE_MODE, mtime
            self._tar.addfile(member, source)
            return
        path = self._result / name
        _make_private(path.parent)
        write_private(path, source, size)
        os.utime(path, (mtime, mtime))

    def _take_name(self) -> None:
        if self._target.exists():
            raise Refused(f"{self._target} appeared meanwhile; it was not changed")
        if self._tar is None:
            self._result.rename(self._target)
            return
        try:
            os.link(self._result, self._target)  # unlike a rename, never over another file
        except OSError as error:
            if self._target.exists() or error.errno not in (errno.EPERM, errno.ENOTSUP):
                raise
            self._result.rename(self._target)  # a file system without links


class BundleReader:
    """A backup that can be verified and taken out again. Raises `DataDamaged` for no whole one."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise Refused(f"there is no backup at {path}")
        self._path = path
        self.manifest = self._read_manifest()

    @property
    def size(self) -> int:
        return sum(entry.bytes for entry in self.manifest.files.values())

    def verify(self, progress: Progress = lambda name, done: None) -> None:
        """Read every byte and compare it with the manifest."""
        self._each(lambda name, file: _drain(file), progress)

    def extract(self, folder: Path, progress: Progress = lambda name, done: None) -> None:
        """Write every file below `folder`, synced; each is verified on its way."""

        def write(name: str, file: "_Hashing") -> None:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            entry = self.manifest.files[name]
            write_private(path, file, entry.bytes)
            os.utime(path, (entry.mtime, entry.mtime))

        with _no_space(folder):
            self._each(write, progress)

    def _each(self, take: Callable[[str, "_Hashing"], None], progress: Progress) -> None:
        missing, done = dict(self.manifest.files), 0
        for name, file in self._files():
            entry = missing.pop(name, None)
            if entry is None:
                raise DataDamaged(f"{self._path} holds {name}, which its manifest does not name")
            progress(name, done)
            reader = _Hashing(file)
            take(name, reader)
            if reader.hexdigest() != entry.sha256:
                raise DataDamaged(
                    f"{name} in {self._path} does not match its checksum: the backup was changed "
                    "or its disk is failing. Use another one"
                )
            done += entry.bytes
        if missing:
            raise DataDamaged(f"{self._path} lacks {len(missing)} files, {min(missing)} among them")

    def _files(self) -> Iterator[tuple[str, IO[bytes]]]:
        if self._path.is_dir():
            for path in sorted(self._path.rglob("*")):
                name = path.relative_to(self._path).as_posix()
                if name == MANIFEST or (path.is_dir() and not path.is_symlink()):
                    continue
                if not path.is_file() or path.is_symlink():
                    raise DataDamaged(f"{name} in {self._path} is no plain file")
                with path.open("rb") as file:
                    yield name, file
            return
        with self._opened() as tar:
            for member in tar:
                if member.name == MANIFEST:
                    continue
                content = tar.extractfile(member) if member.isreg() else None
                if content is None:
                    raise DataDamaged(f"{member.name} in {self._path} is no plain file")
                yield member.name, content

    def _read_manifest(self) -> Manifest:
        try:
            if self._path.is_dir():
                content = (self._path / MANIFEST).read_bytes()
            else:
                with self._opened() as tar:
                    content = cast("IO[bytes]", tar.extractfile(MANIFEST)).read()
            manifest = msgspec.json.decode(content, type=Manifest)
        except (FileNotFoundError, KeyError, msgspec.MsgspecError) as error:
            raise DataDamaged(
                f"{self._path} is no whole backup: it has no manifest ({MANIFEST}), which is "
                "written last"
            ) from error
        if manifest.format != FORMAT:
            raise DataDamaged(f"{self._path} has format {manifest.format}; this flywheel reads 1")
        for name in manifest.files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or not path.parts:
                raise DataDamaged(f"{self._path} names a file outside of itself: {name!r}")
        return manifest

    @contextmanager
    def _opened(self) -> Iterator[tarfile.TarFile]:
        try:
            with tarfile.open(self._path, "r:") as tar:
                yield tar
        except (tarfile.TarError, EOFError) as error:
            raise DataDamaged(f"{self._path} is no whole backup: {error}") from error


class _Hashing:
    """Reads on, and knows the hash of all that was read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        piece = self._file.read(size)
        self._digest.update(piece)
        return piece

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def write_private(path: Path, source: Any, size: int) -> None:
    """Copy exactly `size` bytes into a new file that only its owner reads; synced."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, FILE_MODE)
    with os.fdopen(descriptor, "wb") as file:
        left = size
        while left:
            piece = source.read(min(PIECE, left))
            if not piece:
                raise DataDamaged(f"{path.name} is shorter than it was a moment ago")
            file.write(piece)
            left -= len(piece)
        file.flush()
        os.fsync(file.fileno())


def _make_private(folder: Path) -> None:
    """With its parents; `Path.mkdir` gives the mode to the last of them only."""
    for one in (*reversed(folder.parents), folder):
        if not one.exists():
            one.mkdir(mode=FOLDER_MODE)


def copy_sqlite(source: Path, target: Path) -> None:
    """A consistent copy of an SQLite file while others write to it."""
    descriptor = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, FILE_MODE)
    os.close(descriptor)
    try:
        with (
            closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True, timeout=30)) as one,
            closing(sqlite3.connect(target)) as other,
        ):
            one.backup(other)
    except sqlite3.DatabaseError as error:
        if "full" in str(error):
            raise DiskFull(f"no space left to copy {source.name}; free some on {target}") from error
        raise DataDamaged(f"{source} cannot be copied: {error}") from error


@contextmanager
def _no_space(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"no space left in {folder}; nothing half-written is left") from error
        raise


def _drain(file: _Hashing) -> None:
    while file.read(PIECE):
        pass
