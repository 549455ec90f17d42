"""Dependencies point one way, and nobody pays for a stack that he does not use."""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
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
    "duckdb": ("storage/", "service/care/logs/files.py"),  # the latter reads Parquet with it
}
# The wings of `service/`, each with those that it may import of the others.
WINGS: dict[str, tuple[str, ...]] = {
    "host": (),
    "topics": (),
    "gateway": ("host", "topics/__init__.py"),
    "operator": ("topics/__init__.py",),
    "console": ("operator",),
    "learner": ("console", "operator", "host", "topics"),
    "care": (
        "operator",
        "host",
        "topics",
        "gateway/generations.py",
        "learner/executor.py",
        "learner/teacher.py",
    ),
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


def own_imports(tree: ast.AST) -> Iterator[str]:
    """Every module of ours that is imported, also inside a function or under TYPE_CHECKING."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (found for alias in node.names if (found := module_file(alias.name)))
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                found = module_file(f"{node.module}.{alias.name}") or module_file(node.module)
                if found:
                    yield found


def module_file(name: str) -> str | None:
    path = name.replace(".", "/")
    found = (one for one in (f"{path}.py", f"{path}/__init__.py") if (ROOT / one).is_file())
    return next(found, None) if name.split(".")[0] in PACKAGES else None


def file_graph() -> dict[str, set[str]]:
    return {name: set(own_imports(tree)) - {name} for name, tree in modules(*PACKAGES)}


def room(file: str) -> str:
    """The folder that a file lies in; what lies directly in a package is a room of its own."""
    parts = file.split("/")
    return file if len(parts) == 2 else "/".join(parts[:-1])


def room_graph() -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {}
    for file, imported in file_graph().items():
        graph.setdefault(room(file), set()).update(map(room, imported))
    return {name: imported - {name} for name, imported in graph.items()}


@pytest.mark.parametrize("graph", [file_graph, room_graph])
def test_no_import_goes_round_in_a_circle(graph: Callable[[], dict[str, set[str]]]) -> None:
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def wing(file: str) -> str:
    return file.split("/")[1]


@pytest.mark.parametrize("name", WINGS)
def test_wings_of_the_house_stand_in_order(name: str) -> None:
    """A wing imports those that stand below it, as the list says, and no other."""
    others = {
        file: {one for one in imported if wing(one) in WINGS and wing(one) != name}
        for file, imported in file_graph().items()
        if file.startswith(f"service/{name}/")
    }
    allowed = tuple(f"service/{one}" for one in WINGS[name])
    wrong = {
        file: [one for one in imported if not one.startswith(allowed)]
        for file, imported in others.items()
    }
    assert not {file: found for file, found in wrong.items() if found}


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


def test_metrics_are_declared_in_one_folder() -> None:
    kinds = {"Counter", "Gauge", "Histogram", "Summary", "Info"}
    for name, tree in modules(*PACKAGES):
        makes = calls(tree) & kinds and "prometheus_client" in imported_packages(tree)
        assert not makes or name.startswith("service/metrics/"), name


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
