"""The systemd unit is accepted by systemd, gives nothing away, and agrees with the program."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from deploy_files import DEPLOY, ROOT, program, said

from pipelines.errors import ExitCode
from service.settings import Settings, load_settings
from service.supervisor import GRACE_SECONDS, HOPELESS

UNIT = DEPLOY / "systemd" / "flywheel.service"
# Of 10; systemd calls what is below 2 "OK". The network and the trainer's memory are needed.
EXPOSURE = 1.5


@pytest.fixture(scope="module")
def unit() -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    analyze = program("systemd-analyze", "systemd")
    # Nothing is installed in /opt here; the program is all that differs.
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/flywheel/.venv/bin/flywheel", "/bin/true"))
    verify = f"{analyze} verify --man=no {copy} 2>&1"  # it warns on standard error
    assert said("sh", "-c", verify) == ""
    copy.write_text(copy.read_text().replace("Type=notify", "Typ=notify"))
    assert "Unknown key" in said("sh", "-c", verify)


def test_the_unit_gives_little_away() -> None:
    analyze = program("systemd-analyze", "systemd")
    table = said(analyze, "security", "--offline=true", "--no-pager", UNIT)
    level = re.search(r"Overall exposure level for flywheel.service: ([\d.]+)", table)
    assert level
    assert float(level[1]) <= EXPOSURE, table


def test_what_only_a_person_can_mend_is_not_restarted(unit: Mapping[str, list[str]]) -> None:
    (codes,) = unit["RestartPreventExitStatus"]
    prevented = {ExitCode(int(code)) for code in codes.split()}
    # Ports and locks come free when what holds them ends.
    assert prevented == HOPELESS - {ExitCode.PORT_IN_USE, ExitCode.DATA_LOCKED}


def test_systemd_waits_until_all_is_drained(unit: Mapping[str, list[str]]) -> None:
    settings = Settings()
    drains = settings.gateway.drain_timeout, settings.learner.drain_timeout
    longest = max(drain.total_seconds() for drain in drains) + GRACE_SECONDS
    assert int(unit["TimeoutStopSec"][0]) > longest
    # The supervisor passes the signal on: a second one would end a gateway at once.
    assert unit["KillMode"] == ["mixed"]


def test_the_units_folders_and_secrets_are_settings(
    unit: Mapping[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As systemd would set them: a credential is a file called like its setting."""
    commented = re.findall(r"^# LoadCredential=(.+)$", UNIT.read_text(), re.M)
    for credential in (*unit["LoadCredential"], *commented):
        name, _, source = credential.partition(":")
        assert source == f"/etc/flywheel/credentials/{name}"
        (tmp_path / name).write_text('{"acks": 1}' if name == "kafka__options" else "a key")
    for line in unit["Environment"]:
        name, _, value = line.partition("=")
        monkeypatch.setenv(name, value.replace("%d", str(tmp_path)).replace("%S", "/var/lib"))
    monkeypatch.chdir(tmp_path)
    settings = load_settings()
    assert settings.data_dir == Path("/var/lib") / unit["StateDirectory"][0]
    assert settings.teacher.api_key.get_secret_value() == "a key"


def test_the_page_names_what_the_unit_names(unit: Mapping[str, list[str]]) -> None:
    page = (ROOT / "docs" / "how-to" / "run-under-systemd.md").read_text()
    for name in ("/etc/flywheel/flywheel.toml", "/etc/flywheel/credentials", "/opt/flywheel"):
        assert name in page, name
    assert f"--home-dir /var/lib/{unit['StateDirectory'][0]}" in page
    assert unit["Documentation"][0].endswith("/docs/how-to/run-under-systemd.md")
