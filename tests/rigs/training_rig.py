"""A workshop with the installed encoder, and small data that a head can learn."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learner_rig import Rig, open_rig

from pipelines.types import Draws, SampleReason, Side
from service.learner.base_models import BaseModels
from service.learner.encoder import publish_encoder
from service.learner.evaluation import Evaluating
from service.learner.executor import LocalExecutor, places_of
from service.learner.training import Training
from service.learner.workshop import Workshop
from service.sections import TrainerSettings
from storage.artifacts import Artifacts

PHRASES = {
    "refund": ("i want my money back for {}", "please refund what i paid for {}",
               "give me back the money i spent on {}", "return the payment for {} to my card"),
    "delivery": ("where is the parcel with {}", "when will {} be delivered",
                 "the courier has not brought {} yet", "track the shipment of {} for me"),
    "cancel": ("cancel my order of {}", "i do not want {} any more, stop the order",
               "please call off the order for {}", "undo my purchase of {} before it ships"),
}  # fmt: skip
THINGS = (
    "the blue lamp", "a pair of red shoes", "my new phone", "the garden chairs", "two books",
    "the coffee machine", "a winter coat", "the kitchen table", "some headphones", "the old radio",
    "a mountain bike", "the birthday present", "green curtains", "my running watch", "a tent",
)  # fmt: skip


@dataclass
class Shop:
    """A workshop and its two jobs."""

    rig: Rig
    artifacts: Artifacts
    executor: LocalExecutor
    training: Training
    evaluating: Evaluating
    workshop: Workshop

    def fill(self, things: int = len(THINGS), *, start: int = 0) -> None:
        """Labelled samples: one thing in five judges, the others train."""
        for number in range(start, things):
            for label, phrases in PHRASES.items():
                for at, phrase in enumerate(phrases):
                    self._add(
                        f"{label}-{number}-{at}", phrase.format(THINGS[number]), label, number
                    )

    def _add(self, event_id: str, text: str, label: str, number: int) -> None:
        held_out = number % 5 == 0
        self.rig.sample(
            event_id,
            text,
            side=Side.HELD_OUT if held_out else Side.TRAINING,
            reason=SampleReason.HELD_OUT if held_out else SampleReason.GIVEN,
            draws=Draws(held_out=0.5) if held_out else Draws(),
        )
        self.rig.label(event_id, label)

    def children_left(self) -> list[str]:
        folder = self.rig.folder / "scratch"
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@contextmanager
def open_shop(
    folder: Path, *, trainer: Mapping[str, Any] | None = None, **sections: Any
) -> Iterator[Shop]:
    """Everything that trains and judges, in `folder`."""
    limits = {"threads": 1, **(trainer or {})}
    with open_rig(folder, trainer=limits, **sections) as rig:
        artifacts = Artifacts(folder / "artifacts")
        executor = LocalExecutor(TrainerSettings(**limits), places_of(rig.settings, artifacts))
        encoder = publish_encoder(rig.settings, artifacts)
        workshop = Workshop(
            database=rig.database,
            artifacts=artifacts,
            executor=executor,
            settings=rig.settings,
            tasks={rig.task.name: rig.task},
            encoder=encoder,
            bases=BaseModels(rig.settings, artifacts, executor, encoder),
            metrics=rig.metrics,
            now=rig.now,
        )
        yield Shop(
            rig=rig,
            artifacts=artifacts,
            executor=executor,
            training=Training(workshop),
            evaluating=Evaluating(workshop),
            workshop=workshop,
        )


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
