"""Dependencies point one way, and nobody pays for a stack that he does not use."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("pipelines", "storage", "service")
OUTSIDE_WORLD = {
    "apscheduler",
    "duckdb",
    "fastapi",
    "kafka",
    "openai",
    "prometheus_client",
    "pydantic_settings",
    "sqlite3",
    "starlette",
    "structlog",
    "uvicorn",
}
FORBIDDEN = {
    "pipelines": {"service", "storage"} | OUTSIDE_WORLD,
    "storage": {"service"} | OUTSIDE_WORLD - {"duckdb", "sqlite3"},
}
TRAINING_STACK = {"torch", "transformers", "peft", "accelerate"}
TRAINING_MODULES = ("pipelines/students/", "pipelines/train.py")
# Everywhere else a library's types and errors are translated into ours.
ONLY_IN = {
    "kafka": ("service/topics/",),
    "apscheduler": ("service/learner/schedule.py",),
    "duckdb": ("storage/", "service/import_log.py"),  # the latter reads Parquet with it
}
# The settings, and those who hand an environment to a child.
READ_THE_ENVIRONMENT = {
    "service/settings.py",
    "service/supervisor.py",
    "service/host/process.py",
    "service/demo/scripted_teacher.py",  # a program of its own
    "storage/failpoints.py",  # what only tests set
}
# Where reading a clock, the environment or a socket would make a result unrepeatable.
IMPURE_CALLS = {"time.time", "datetime.now", "datetime.utcnow", "date.today", "uuid4", "os.getenv"}


def modules(*packages: str) -> Iterator[tuple[str, ast.Module]]:
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())


def imported_packages(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def calls(tree: ast.AST) -> set[str]:
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_package_imports_only_downwards(package: str) -> None:
    wrong = {name: imported_packages(tree) & FORBIDDEN[package] for name, tree in modules(package)}
    assert not {name: found for name, found in wrong.items() if found}


@pytest.mark.parametrize("library", ONLY_IN)
def test_library_stays_inside_its_files(library: str) -> None:
    users = [name for name, tree in modules(*PACKAGES) if library in imported_packages(tree)]
    assert users, f"{library} is not used any more"
    assert [name for name in users if not name.startswith(ONLY_IN[library])] == []


def test_training_stack_is_imported_by_trainer_and_students_only() -> None:
    users = [n for n, tree in modules(*PACKAGES) if imported_packages(tree) & TRAINING_STACK]
    assert [name for name in users if not name.startswith(TRAINING_MODULES)] == []


def test_metrics_are_declared_in_one_file() -> None:
    kinds = {"Counter", "Gauge", "Histogram", "Summary", "Info"}
    for name, tree in modules(*PACKAGES):
        makes = calls(tree) & kinds and "prometheus_client" in imported_packages(tree)
        assert not makes or name == "service/metrics.py", name


def test_core_has_no_clock_and_no_environment() -> None:
    for name, tree in modules("pipelines"):
        impure = [call for call in calls(tree) if call.endswith(tuple(IMPURE_CALLS))]
        reads = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr == "environ"]
        assert not impure, f"{name} calls {impure}"
        assert not reads, f"{name} reads the environment"


def test_environment_is_read_where_it_may_be() -> None:
    for name, tree in modules(*PACKAGES):
        reads = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr == "environ"]
        assert not reads or name in READ_THE_ENVIRONMENT, name


STARTS = {
    "command line": ("service.cli", TRAINING_STACK | {"scipy", "sklearn", "duckdb", "onnxruntime"}),
    "gateway": ("service.gateway.app", TRAINING_STACK | {"scipy", "sklearn", "duckdb"}),
    "learner": ("service.learner.daemon", TRAINING_STACK | {"scipy", "sklearn"}),
}


@pytest.mark.parametrize("part", STARTS)
def test_part_starts_without_what_it_does_not_need(part: str) -> None:
    module, unwanted = STARTS[part]
    code = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not set(done.stdout.split()) & unwanted


def test_no_result_is_left_open() -> None:
    """DuckDB streams: a `fetchone` keeps its transaction, and old row versions pile up."""
    for path in (ROOT / "storage").rglob("*.py"):
        if path.name != "ledger.py":  # SQLite
            code = path.read_text().replace("`fetchone`", "")
            assert "fetchone" not in code, path
