"""Every name in the data folder. Nobody else spells one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from uuid import uuid4

Plane = Literal["learner", "gateway"]

DATABASE = "flywheel.duckdb"
DECISIONS = "decisions.jsonl"
LIVE = "live.json"
LEDGER = "ledger"
TOPIC = "topic.sqlite"
RUN = "run"  # notes of what runs: worth nothing to whoever comes later
SECRETS = "secrets"
INTERNAL_KEY = f"{SECRETS}/internal.key"
RESTORING = ".restoring"  # in a folder that a restore has not finished
STAGED = ".backup"  # what a restore has read and not put in its place
REBUILDING = ".rebuilding"
ARTIFACTS = "artifacts"
# What must be readable by its owner only.
PRIVATE = (SECRETS, LEDGER, DECISIONS, TOPIC)


@dataclass(frozen=True, slots=True)
class DataFolder:
    """The paths of one installation's data. Nothing is made by asking for them."""

    root: Path

    @property
    def database(self) -> Path:
        """DuckDB's file; the learner alone opens it."""
        return self.root / DATABASE

    @property
    def decisions(self) -> Path:
        """The chain of decisions, a link a line."""
        return self.root / DECISIONS

    @property
    def live(self) -> Path:
        """What is published."""
        return self.root / LIVE

    @property
    def fetched_live(self) -> Path:
        """What a gateway on another host last got of it."""
        return self.root / "live.fetched.json"

    @property
    def ledger(self) -> Path:
        """Calls to the teacher and their replies; `storage.ledger` knows what is inside."""
        return self.root / LEDGER

    @property
    def artifacts(self) -> Path:
        """`storage.artifacts` knows what is inside."""
        return self.root / ARTIFACTS

    @property
    def topic(self) -> Path:
        """The embedded topic, where no broker is set."""
        return self.root / TOPIC

    @property
    def internal_key(self) -> Path:
        return self.root / INTERNAL_KEY

    @property
    def operator_token(self) -> Path:
        return self.root / SECRETS / "operator.token"

    @property
    def notifications(self) -> Path:
        """What operators were told."""
        return self.root / "notifications.json"

    @property
    def run(self) -> Path:
        return self.root / RUN

    @property
    def lock(self) -> Path:
        """Held by the one learner, or by who works in its place."""
        return self.run / "learner.lock"

    def note(self, plane: Plane) -> Path:
        """Where a plane of this host notes the address that it listens on."""
        return self.run / f"{plane}.json"

    @property
    def restoring(self) -> Path:
        return self.root / RESTORING

    @property
    def staged(self) -> Path:
        return self.root / STAGED

    @property
    def rebuilding(self) -> Path:
        return self.root / REBUILDING

    def kept_database(self, moment: str) -> Path:
        """Where a rebuild puts the database that it replaces."""
        return self.root / f"database-before-{moment}"

    # Children write here; on the artifacts' disk, so that what they make can be moved.

    @property
    def scratch(self) -> Path:
        """The learner's own: what is in it when the learner starts is rubbish."""
        return self.root / "scratch"

    def new_scratch(self) -> Path:
        """A name that nobody else uses."""
        return self.scratch / uuid4().hex

    @property
    def encoder_scratch(self) -> Path:
        return self.root / "scratch-encoder"

    @property
    def fetched(self) -> Path:
        """Artifacts on their way to a gateway."""
        return self.root / "scratch-fetched"

    @property
    def frozen(self) -> Path:
        """Copies of the database, each while a backup is made of it."""
        return self.root / "scratch-backups"

    def new_frozen(self) -> Path:
        """A name that nobody else uses; whoever asked for the copy removes it."""
        return self.frozen / uuid4().hex

    def checkpoints(self, task: str) -> Path:
        """Where interrupted trainings of a task stand."""
        return self.root / "checkpoints" / task

    # What can be made again.

    def vectors(self, encoder: str) -> Path:
        """Vectors of one encoder, by the content of their texts."""
        return self.root / "cache" / f"vectors-{encoder[:16]}"

    def vector_files(self) -> list[Path]:
        """Those of all encoders."""
        return list(self.root.glob("cache/vectors-*/*"))

    @property
    def precision(self) -> Path:
        """In which precision recipes are tuned on this host."""
        return self.root / "cache" / "precision.json"
