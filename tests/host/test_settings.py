"""Settings: one order of precedence, nothing unknown accepted, no secret shown."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.errors import ExitCode, SettingsError
from pipelines.recipes import RECIPES
from service.care.check import find_problems, lines
from service.settings import Settings, load_settings

SUPPORT = """
[tasks.support]
models = ["support-classifier"]
labels = ["refund", "delivery"]
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "flywheel.toml"
    path.write_text(text)
    return path


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(written(folder, text))
    assert caught.value.exit_code is ExitCode.SETTINGS
    return str(caught.value)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")


def test_command_line_beats_environment_beats_secrets_beats_file_beats_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(
        tmp_path,
        'data_dir = "from-file"\n[teacher]\nmodel = "from-file"\nbase_url = "http://from-file"\n'
        'terms = "from-file"\n',
    )
    assert load_settings(path).teacher.max_concurrency == 8

    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "teacher__model").write_text("from-secrets")
    (secrets / "teacher__base_url").write_text("http://from-secrets")
    (secrets / "data_dir").write_text("from-secrets")
    monkeypatch.setenv("FLYWHEEL_SECRETS_DIR", str(secrets))
    monkeypatch.setenv("FLYWHEEL_TEACHER__BASE_URL", "http://from-environment")
    monkeypatch.setenv("FLYWHEEL_DATA_DIR", "from-environment")

    settings = load_settings(path, data_dir=Path("from-command-line"))

    assert settings.data_dir == Path("from-command-line")
    assert settings.teacher.base_url == "http://from-environment"
    assert settings.teacher.model == "from-secrets"
    assert settings.teacher.terms == "from-file"


def test_settings_file_is_found_by_option_variable_or_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("flywheel.toml").write_text('data_dir = "here"')
    assert load_settings().data_dir == Path("here")

    named = tmp_path / "other.toml"
    named.write_text('data_dir = "there"')
    monkeypatch.setenv("FLYWHEEL_CONFIG", str(named))
    assert load_settings().data_dir == Path("there")

    monkeypatch.setenv("FLYWHEEL_CONFIG", str(tmp_path / "missing.toml"))
    with pytest.raises(SettingsError, match=r"there is no settings file at .*missing\.toml"):
        load_settings()


def test_unknown_key_is_refused_by_its_full_name(tmp_path: Path) -> None:
    said = refusal(tmp_path, "[teacher]\nmodle = 'x'\n[gatweay]\nport = 1\n")
    assert "teacher.modle: there is no such setting" in said
    assert "gatweay: there is no such setting" in said
    assert "flywheel check" in said


@pytest.mark.parametrize("name", ["FLYWHEEL_KAFKAA__TOPIC", "FLYWHEEL_KAFKA__TOPICC"])
def test_unknown_variable_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "x")
    with pytest.raises(SettingsError, match=r"KAFKAA|topicc"):
        load_settings()


def test_unknown_secret_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "teacher__api_kee").write_text("sk-1")
    monkeypatch.setenv("FLYWHEEL_SECRETS_DIR", str(tmp_path))
    with pytest.raises(SettingsError, match="api_kee") as caught:
        load_settings()
    assert "sk-1" not in str(caught.value)


def test_stray_file_among_the_secrets_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "teachr__api_key").write_text("sk-1")
    monkeypatch.setenv("FLYWHEEL_SECRETS_DIR", str(tmp_path))
    with pytest.raises(SettingsError, match="teachr__api_key is not called like a setting"):
        load_settings()


def test_secrets_as_kubernetes_mounts_them_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "..2026_11_23").mkdir()
    (tmp_path / "..2026_11_23" / "teacher__api_key").write_text("sk-1\n")
    (tmp_path / "..data").symlink_to("..2026_11_23")
    (tmp_path / "teacher__api_key").symlink_to("..data/teacher__api_key")
    monkeypatch.setenv("FLYWHEEL_SECRETS_DIR", str(tmp_path))
    assert load_settings().teacher.api_key.get_secret_value() == "sk-1"


def test_missing_secrets_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYWHEEL_SECRETS_DIR", str(tmp_path / "missing"))
    with pytest.raises(SettingsError, match="there is no such folder"):
        load_settings()


def test_broken_toml_says_where(tmp_path: Path) -> None:
    assert "line 2" in refusal(tmp_path, "[teacher]\nmodel = \n")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('labels = ["only"]', "at least 2"),
        ('labels = ["a", "A"]', "differ only in case"),
        ('labels = ["a", "a"]', "given twice"),
        ('labels = ["a", " b"]', "spaces around it"),
        ('labels = ["a", ""]', "empty"),
        ('labels = ["a", "b"]\nkind = "generate"', "not there yet"),
        ('labels = ["a", "b"]\nanswer_pointer = "intent"', "starts with '/'"),
        ('labels = ["a", "b"]\ntarget = 1.0', "less than 1"),
        ("", "Field required"),
    ],
)
def test_task_that_cannot_work_is_refused_with_a_sentence(
    text: str, sentence: str, tmp_path: Path
) -> None:
    said = refusal(tmp_path, f'[tasks.support]\nmodels = ["m"]\n{text}')
    assert "tasks.support" in said
    assert sentence in said


def test_model_claimed_twice_is_refused(tmp_path: Path) -> None:
    said = refusal(tmp_path, SUPPORT + SUPPORT.replace("tasks.support", "tasks.other"))
    assert "model 'support-classifier' is claimed by support and other" in said


def test_task_name_must_be_plain(tmp_path: Path) -> None:
    said = refusal(tmp_path, SUPPORT.replace("tasks.support", 'tasks."Sup port"'))
    assert "a task's name has lower-case letters" in said


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "gateway.example"])
def test_gateway_beyond_loopback_needs_keys(host: str, tmp_path: Path) -> None:
    text = f'[gateway]\nhost = "{host}"\n'
    assert "gateway.keys" in refusal(tmp_path, text)
    assert load_settings(written(tmp_path, f'{text}keys = ["k"]')).gateway.host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_keys(host: str, tmp_path: Path) -> None:
    assert load_settings(written(tmp_path, f'[gateway]\nhost = "{host}"')).gateway.host == host


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("1h30m", 5400), ("500ms", 0.5), ("7d", 604_800)]
)
def test_durations_are_read_as_people_write_them(text: str, seconds: float, tmp_path: Path) -> None:
    settings = load_settings(written(tmp_path, f'[teacher]\ntimeout = "{text}"'))
    assert settings.teacher.timeout.total_seconds() == seconds


@pytest.mark.parametrize("text", ["soon", "5 parsecs", "every", ""])
def test_what_is_no_duration_is_refused_with_examples(text: str, tmp_path: Path) -> None:
    assert "is not a duration; write for example" in refusal(
        tmp_path, f'[schedule]\ntrain = "{text}"'
    )


@pytest.mark.parametrize(
    "url", ["ftp://host/v1", "http://user:pw@host/v1", "host/v1", "https://host/v1?a=b"]
)
def test_teacher_url_cannot_be_turned(url: str, tmp_path: Path) -> None:
    assert "https://host/v1" in refusal(tmp_path, f'[teacher]\nbase_url = "{url}"')


SECRETS = """
[teacher]
api_key = "sk-teacher"
[gateway]
keys = ["app-key"]
learner_token = "link-token"
[ingest.trusted_producers]
billing = "producer-key"
[kafka.options]
sasl_plain_password = "broker-password"
sasl_plain_username = "flywheel"
"""
SECRET_VALUES = ("sk-teacher", "app-key", "link-token", "producer-key", "broker-password")


def test_secrets_are_masked_wherever_settings_are_shown(tmp_path: Path) -> None:
    settings = load_settings(written(tmp_path, SECRETS))
    shown = "\n".join(lines(settings))
    for secret in SECRET_VALUES:
        assert secret not in shown
    for secret in SECRET_VALUES[:-1]:  # kafka.options go to kafka-python as they are
        assert secret not in repr(settings)
    assert "**********" in shown
    assert 'sasl_plain_username = "flywheel"' in shown


def test_secrets_are_not_in_the_message_about_them(tmp_path: Path) -> None:
    said = refusal(tmp_path, SECRETS + '[tasks.x]\nlabels = ["a"]\n')
    assert not [secret for secret in SECRET_VALUES if secret in said]


def test_what_check_prints_can_be_loaded_again(tmp_path: Path) -> None:
    settings = load_settings(written(tmp_path, SUPPORT))
    again = load_settings(written(tmp_path, "\n".join(lines(settings))))
    assert again.model_dump() == settings.model_dump()


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().data_dir = Path("elsewhere")


def test_check_names_everything_that_the_loop_lacks(tmp_path: Path) -> None:
    errors = {p.setting for p in find_problems(Settings()) if p.level == "error"}
    assert errors == {"tasks", "teacher.base_url", "teacher.model", "teacher.terms"}

    text = (
        SUPPORT
        + '[teacher]\nbase_url = "https://teacher.example/v1"\nmodel = "m"\nterms = "contract 7"\n'
    )
    problems = find_problems(load_settings(written(tmp_path, text)))
    assert [p.setting for p in problems if p.level == "error"] == ["teacher.terms_allow_training"]


def test_check_sees_ports_that_collide(tmp_path: Path) -> None:
    text = "[gateway]\nport = 9000\n[learner]\nport = 9000\n"
    problems = find_problems(load_settings(written(tmp_path, text)))
    assert "learner.port" in {p.setting for p in problems}


RECIPES_TABLE = """
[recipes.causal-lora]
base_model = "models/small-chat"
batch_size = 2
accumulate = 4
"""


def test_a_recipe_is_as_usual_but_for_what_the_settings_change(tmp_path: Path) -> None:
    settings = load_settings(written(tmp_path, SUPPORT + RECIPES_TABLE))
    changed, usual = settings.recipe("causal-lora"), RECIPES["causal-lora"]
    assert (changed.batch_size, changed.accumulate) == (2, 4)
    assert replace(changed, batch_size=usual.batch_size, accumulate=usual.accumulate) == usual
    assert settings.recipe("encoder-lora") == RECIPES["encoder-lora"]
    assert settings.tasks["support"].recipe == "head"


def test_settings_with_recipes_can_be_loaded_again(tmp_path: Path) -> None:
    settings = load_settings(written(tmp_path, SUPPORT + RECIPES_TABLE))
    again = load_settings(written(tmp_path, "\n".join(lines(settings))))
    assert again.model_dump() == settings.model_dump()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[recipes.tree]\nepochs = 3\n", "recipes.tree"),
        ("[recipes.encoder-lora]\nepochs = 0\n", "recipes.encoder-lora.epochs"),
        ("[recipes.encoder-lora]\ntrees = 3\n", "encoder-lora.trees: there is no such setting"),
        ("[recipes.head]\nepochs = 3\n", "a head has nothing to tune"),
        ("[recipes.encoder-full]\nrank = 8\n", "it tunes every weight"),
    ],
)
def test_what_no_recipe_can_be_told_is_refused(tmp_path: Path, text: str, said: str) -> None:
    assert said in refusal(tmp_path, text)
