"""Artifacts: immutable folders named by their content, manifest last.

The only file that knows names on disk: `artifacts/KIND/HASH/`. The hash is that of the
manifest, and the manifest holds the hash of every file, so a name vouches for each byte.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from pipelines.errors import ArtifactDamaged
from storage.durable import sync_folder, write_durably
from storage.failpoints import passing

Kind = Literal["encoder", "chat_model", "dataset", "student", "report"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MANIFEST = "manifest.json"
# An artifact is data, never code: nothing else is published or loaded.
ALLOWED_SUFFIXES = frozenset({".json", ".jsonl", ".safetensors", ".onnx", ".parquet", ".md"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A verified folder. `about` is what its maker wrote into the manifest."""

    kind: Kind
    digest: str
    path: Path
    about: Mapping[str, Any]

    def file(self, name: str) -> Path:
        return self.path / name


class Artifacts:
    """The artifacts of one data folder."""

    def __init__(self, root: Path, *, create: bool = True) -> None:
        self._root = root
        for kind in KINDS if create else ():
            (root / kind).mkdir(parents=True, exist_ok=True)

    def publish(self, kind: Kind, scratch: Path, about: Mapping[str, Any]) -> Artifact:
        """Turn a scratch folder into an artifact; publishing the same content twice is one.

        Files are synced first, the manifest is written last, and the rename makes the whole
        visible at once. Raises `ArtifactDamaged` for a file that no artifact may hold.
        """
        (scratch / MANIFEST).unlink(missing_ok=True)
        manifest = _manifest(kind, scratch, about)
        digest = _digest(manifest)
        target = self._root / kind / digest
        if target.exists() and not (target / MANIFEST).exists():
            shutil.rmtree(target)  # half removed by a prune that was killed
        if target.exists():
            os.utime(target / MANIFEST)  # in use again: prune goes by age
        else:
            passing("artifact.written")
            for name in manifest["files"]:
                _sync_file(scratch / name)
            for folder in filter(Path.is_dir, scratch.rglob("*")):
                sync_folder(folder)
            passing("artifact.synced")
            write_durably(scratch / MANIFEST, _canonical(manifest))
            passing("artifact.manifested")
            try:
                os.replace(scratch, target)
            except OSError:
                if not target.exists():
                    raise
            passing("artifact.renamed")
            sync_folder(target.parent)
        passing("artifact.published")
        return self.open(kind, digest)

    def open(self, kind: Kind, digest: str) -> Artifact:
        """Verify every byte and return the artifact, or raise `ArtifactDamaged`."""
        path = self._root / kind / digest
        if not (path / MANIFEST).is_file():
            raise ArtifactDamaged(f"there is no {kind} {digest[:12]} in the artifacts")
        content = (path / MANIFEST).read_bytes()
        if hashlib.sha256(content).hexdigest() != digest:
            raise ArtifactDamaged(f"the manifest of {kind} {digest[:12]} was changed")
        manifest = json.loads(content)
        present = _manifest(kind, path, manifest["about"])
        if present != manifest:
            changed = _differing(manifest["files"], present["files"])
            raise ArtifactDamaged(
                f"{kind} {digest[:12]} is not what was published: {', '.join(changed)} differ; "
                "it will not be loaded"
            )
        about = cast("Mapping[str, Any]", manifest["about"])
        return Artifact(kind=kind, digest=digest, path=path, about=about)

    def about(self, kind: Kind, digest: str) -> Mapping[str, Any]:
        """What the maker wrote, unverified; nothing where the manifest cannot be read."""
        try:
            manifest = json.loads((self._root / kind / digest / MANIFEST).read_bytes())
            return cast("Mapping[str, Any]", manifest["about"])
        except (OSError, ValueError, LookupError, TypeError):
            return {}

    def look(self, kind: Kind, digest: str) -> Artifact:
        """As `open`, without reading a byte of its files: for what is only told of it."""
        path = self._root / kind / digest
        if not (path / MANIFEST).is_file():
            raise ArtifactDamaged(f"there is no {kind} {digest[:12]} in the artifacts")
        return Artifact(kind=kind, digest=digest, path=path, about=self.about(kind, digest))

    def path(self, kind: Kind, digest: str) -> Path:
        """Where the artifact lies, unverified."""
        return self._root / kind / digest

    def exists(self, kind: Kind, digest: str) -> bool:
        return (self._root / kind / digest / MANIFEST).is_file()

    def digests(self, kind: Kind) -> list[str]:
        folder = self._root / kind
        present = folder.iterdir() if folder.is_dir() else ()
        return sorted(path.name for path in present if path.is_dir())

    def prune(self, kind: Kind, keep: Iterable[str], older_than: float) -> list[str]:
        """Remove the artifacts of a kind that are not in `keep`; returns what went.

        Only those published before `older_than` (seconds since 1970): a job may have published
        one, and not noted it in the database yet.
        """
        kept = set(keep)
        gone = []
        for digest in self.digests(kind):
            if digest in kept or _published_at(self._root / kind / digest) >= older_than:
                continue
            gone.append(digest)
            # The manifest goes first: what is half removed is no artifact any more.
            (self._root / kind / digest / MANIFEST).unlink(missing_ok=True)
            passing("artifact.half_removed")
            shutil.rmtree(self._root / kind / digest)
        return gone


def _published_at(folder: Path) -> float:
    try:
        return (folder / MANIFEST).stat().st_mtime
    except FileNotFoundError:  # half removed
        return 0.0


def _manifest(kind: Kind, folder: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name == MANIFEST or (path.is_dir() and not path.is_symlink()):
            continue
        plain = path.is_file() and not path.is_symlink()
        if not plain or path.suffix not in ALLOWED_SUFFIXES:
            raise ArtifactDamaged(f"{name} may not be part of a {kind}")
        files[name] = {"sha256": hash_file(path), "bytes": path.stat().st_size}
    return {"format": 1, "kind": kind, "files": files, "about": dict(about)}


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _canonical(manifest: Mapping[str, Any]) -> bytes:
    return json.dumps(
        manifest, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False
    ).encode()


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(manifest)).hexdigest()


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
