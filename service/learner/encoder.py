"""The settings' encoder as an artifact: exported once, shared by every version that keeps it."""

import shutil

from pipelines.errors import ArtifactDamaged, SettingsError
from pipelines.students.encoder import MODEL_FILE, TOKENIZER_FILE, installed_encoder_files
from service.settings import Settings
from storage.artifacts import Artifact, Artifacts, hash_file


def publish_encoder(settings: Settings, artifacts: Artifacts) -> Artifact:
    """Make the settings' encoder an artifact; the same files give the same one."""
    encoder = settings.encoder
    if encoder.path is None:
        files = installed_encoder_files()
    else:
        files = {name: (encoder.path / name, "") for name in (MODEL_FILE, TOKENIZER_FILE)}
    scratch = settings.folder.encoder_scratch
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        for name, (path, digest) in files.items():
            if not path.is_file():
                raise SettingsError(f"encoder.path: there is no {name} in {encoder.path}")
            shutil.copyfile(path, scratch / name)
            if digest and hash_file(scratch / name) != digest:
                raise ArtifactDamaged(f"{path.name} of the installed encoder is not the known one")
        about = {"name": encoder.name, "max_tokens": encoder.max_tokens}
        return artifacts.publish("encoder", scratch, about)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
