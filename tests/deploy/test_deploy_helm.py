"""The chart renders what Kubernetes accepts; a gateway in trouble leaves the app's pod alone."""

import json
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy_files import DEPLOY, ROOT, said, tools, tools_module

from service.care.check import find_problems
from service.cli import app
from service.host.probe import main as probe
from service.settings import Settings, load_settings

CHART = DEPLOY / "helm" / "flywheel"
EXAMPLE = CHART / "example-values.yaml"
MINIMAL = """
settings: |
  [kafka]
  bootstrap_servers = "kafka:9092"
  [tasks.a]
  models = ["m"]
  labels = ["x", "y"]
networkPolicy:
  enabled: false
"""
OWN_CHART = {
    "Chart.yaml": """
apiVersion: v2
name: own
version: 1.0.0
dependencies:
  - name: flywheel
    version: 0.1.0
    repository: file://charts/flywheel
""",
    "values.yaml": "flywheel:\n  existingSecret: ours\n",
    "templates/own.yaml": """
apiVersion: apps/v1
kind: Deployment
metadata:
  name: own
spec:
  selector:
    matchLabels: &labels {app: own}
  template:
    metadata:
      labels:
        app: own
        {{- include "flywheel.gateway.labels" .Subcharts.flywheel | nindent 8 }}
      annotations:
        {{- include "flywheel.gateway.annotations" .Subcharts.flywheel | nindent 8 }}
    spec:
      initContainers:
        {{- include "flywheel.gateway.container" .Subcharts.flywheel | nindent 8 }}
      containers:
        - name: own
          image: own:1.0
      volumes:
        {{- include "flywheel.gateway.volumes" .Subcharts.flywheel | nindent 8 }}
""",
}


def render(values: Path, *more: str, chart: Path = CHART, release: str = "fly") -> str:
    return said(tools().helm, "template", release, chart, "-f", values, *more)


@pytest.fixture(scope="module")
def rendered() -> str:
    """Everything that the chart can install."""
    return render(EXAMPLE)


@pytest.fixture(scope="module")
def resources(rendered: str) -> list[dict[str, Any]]:
    return [found for found in yaml.safe_load_all(rendered) if found]


def named(resources: list[dict[str, Any]], kind: str, end: str = "") -> dict[str, Any]:
    (found,) = (
        one
        for one in resources
        if one["kind"] == kind and one["metadata"]["name"] == f"fly-flywheel{end}"
    )
    return found


def pod(resources: list[dict[str, Any]], plane: str) -> dict[str, Any]:
    kind, end = (
        ("StatefulSet", "-learner") if plane == "learner" else ("Deployment", "-example-app")
    )
    spec: dict[str, Any] = named(resources, kind, end)["spec"]["template"]["spec"]
    return spec


def container(resources: list[dict[str, Any]], plane: str) -> dict[str, Any]:
    spec = pod(resources, plane)
    (found,) = spec["containers"] if plane == "learner" else spec["initContainers"]
    assert isinstance(found, dict)
    return found


def containers(resources: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for one in resources:
        spec = one.get("spec", {}).get("template", {}).get("spec", {})
        yield from spec.get("initContainers", [])
        yield from spec.get("containers", [])


def check(text: str, version: str, expect: int = 0) -> str:
    found = tools()
    return said(
        found.kubeconform,
        "-strict",
        "-summary",
        *found.schema_locations(version),
        input=text,
        expect=expect,
    )


def test_helm_lint_finds_nothing() -> None:
    assert "0 chart(s) failed" in said(tools().helm, "lint", "--strict", CHART, "-f", EXAMPLE)


@pytest.mark.parametrize("version", tools_module().KUBERNETES)
def test_kubernetes_accepts_everything_rendered(
    rendered: str, version: str, tmp_path: Path
) -> None:
    summary = check(rendered, version)
    assert "Invalid: 0, Errors: 0, Skipped: 0" in summary
    minimal = tmp_path / "values.yaml"
    minimal.write_text(MINIMAL)
    assert "Valid: 4, Invalid: 0, Errors: 0, Skipped: 0" in check(render(minimal), version)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("livenessProbe:", "lifenessProbe:"),
        ("targetLabel: job", "targetlabel: job"),
    ],
)
def test_the_check_sees_a_mistake(rendered: str, right: str, wrong: str) -> None:
    assert right in rendered
    said_of_it = check(rendered.replace(right, wrong), "1.37.0", expect=1)
    assert "Invalid: 0" not in said_of_it


def test_a_gateway_in_trouble_does_not_take_the_pod_out_of_service(
    resources: list[dict[str, Any]], tmp_path: Path
) -> None:
    gateway = container(resources, "gateway")
    assert gateway["restartPolicy"] == "Always"  # a native sidecar
    # The pod is ready when all containers are: a probe of ours would count for the app.
    assert "readinessProbe" not in gateway
    # A container that has ended is not ready either: this one starts the gateway again instead.
    assert gateway["args"] == ["gateway", "--keep-running"]
    _parse(gateway["args"])
    assert gateway["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": 8700}
    # The app waits for it, but not for ever: with nothing there at all, the probe lets pass.
    command = gateway["startupProbe"]["exec"]["command"]
    assert command[:3] == ["python", "-m", "service.host.probe"]
    seconds = next(word for word in command if word.startswith("--within="))
    assert gateway["startupProbe"]["timeoutSeconds"] > int(seconds.removeprefix("--within="))
    at_once = ["--within=0" if word == seconds else word for word in command[3:]]
    there = [f"--data-dir={tmp_path}" if "--data-dir" in word else word for word in at_once]
    assert probe(there) == 0
    # Settings or secrets that are not there would keep the whole pod from starting.
    volumes = {volume["name"]: volume for volume in pod(resources, "gateway")["volumes"]}
    assert volumes["flywheel-settings"]["configMap"]["optional"]
    assert volumes["flywheel-secrets"]["secret"]["optional"]


def _parse(arguments: list[str]) -> None:
    import typer

    command: Any = typer.main.get_command(app)
    with command.make_context("flywheel", list(arguments)) as context:
        _, verb, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        verb.make_context(arguments[0], rest, parent=context)


def test_the_app_ends_before_its_gateway_and_both_have_the_time(
    resources: list[dict[str, Any]],
) -> None:
    settings = Settings()
    app_pod, learner_pod = pod(resources, "gateway"), pod(resources, "learner")
    drains = settings.gateway.drain_timeout.total_seconds()
    assert app_pod["terminationGracePeriodSeconds"] >= drains + 30
    drains = settings.learner.drain_timeout.total_seconds()
    assert learner_pod["terminationGracePeriodSeconds"] > drains + 10


@pytest.mark.parametrize("plane", ["gateway", "learner"])
def test_what_the_chart_sets_are_settings(
    resources: list[dict[str, Any]], plane: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The container's environment, ConfigMap and Secret, read as the program reads them."""
    secrets = {
        "gateway__keys": '["one", "two"]',
        "gateway__learner_token": "a long random key",
        "teacher__api_key": "the teacher's",
    }
    for name, value in secrets.items():
        (tmp_path / name).write_text(value)
    written = named(resources, "ConfigMap")["data"]["flywheel.toml"]
    where = {"/etc/flywheel/flywheel.toml": "toml", "/run/flywheel/secrets": ""}
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "toml").write_text(written)
    monkeypatch.chdir(tmp_path)
    for entry in container(resources, plane)["env"]:
        value = entry["value"]
        if value in where:
            value = str(tmp_path / "x" / "toml" if where[value] else tmp_path)
        monkeypatch.setenv(entry["name"], value)
    settings = load_settings()
    assert tomllib.loads(written)["tasks"].keys() == settings.tasks.keys()
    unwritable = "data_dir"  # of the container
    errors = [one for one in find_problems(settings) if one.level == "error"]
    assert [one.setting for one in errors if one.setting != unwritable] == []
    port = settings.gateway.port if plane == "gateway" else settings.learner.port
    assert container(resources, plane)["livenessProbe"]["httpGet"]["port"] == port
    if plane == "gateway":
        assert settings.gateway.host == "0.0.0.0"
        learner = named(resources, "Service", "-learner")
        assert settings.gateway.learner_url == f"http://{learner['metadata']['name']}:8701"
    else:
        assert settings.learner.host == "0.0.0.0"
        gateways = named(resources, "Service", "-gateways")
        assert settings.gateway_url == f"http://{gateways['metadata']['name']}:8700"


def test_every_container_may_do_next_to_nothing(resources: list[dict[str, Any]]) -> None:
    found = list(containers(resources))
    assert len(found) == 3
    for one in found:
        context = one["securityContext"]
        assert context["runAsNonRoot"]
        assert context["readOnlyRootFilesystem"]
        assert not context["allowPrivilegeEscalation"]
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert one["resources"]["limits"]["memory"]
    for plane in ("gateway", "learner"):
        assert not pod(resources, plane)["automountServiceAccountToken"]
        writable = {mount["mountPath"] for mount in container(resources, plane)["volumeMounts"]}
        assert {"/var/lib/flywheel", "/tmp"} <= writable


def test_secrets_come_from_existing_ones_only(
    resources: list[dict[str, Any]], rendered: str
) -> None:
    assert not [one for one in resources if one["kind"] == "Secret"]
    for one in containers(resources):
        for entry in one["env"]:
            secret = any(word in entry["name"] for word in ("KEY", "TOKEN", "PASSWORD"))
            assert not secret or "secretKeyRef" in entry["valueFrom"], entry["name"]
    assert "stringData" not in rendered


def test_there_is_one_learner_and_it_keeps_its_data(resources: list[dict[str, Any]]) -> None:
    spec = named(resources, "StatefulSet", "-learner")["spec"]
    assert spec["replicas"] == 1
    (claim,) = spec["volumeClaimTemplates"]
    mounts = {
        one["name"]: one["mountPath"] for one in container(resources, "learner")["volumeMounts"]
    }
    assert mounts[claim["metadata"]["name"]] == "/var/lib/flywheel"
    # A budget of disruptions for one pod would forbid every maintenance of its node.
    budgets = [one for one in resources if one["kind"] == "PodDisruptionBudget"]
    assert [one["metadata"]["name"] for one in budgets] == ["fly-flywheel-example-app"]


def test_rules_and_dashboards_are_those_of_this_repository(
    resources: list[dict[str, Any]],
) -> None:
    shipped = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())
    assert named(resources, "PrometheusRule")["spec"] == shipped
    dashboards = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
    assert dashboards
    for path in dashboards:
        data = named(resources, "ConfigMap", f"-dashboard-{path.stem}")["data"]
        assert json.loads(data[path.name]) == json.loads(path.read_text())


def test_alerts_lead_to_the_runbooks_where_they_can_be_read() -> None:
    text = render(EXAMPLE, "--set", "prometheusRule.runbookUrl=https://runbooks.example/flywheel/")
    rule = named([one for one in yaml.safe_load_all(text) if one], "PrometheusRule")
    for group in rule["spec"]["groups"]:
        for one in group["rules"]:
            if "alert" in one:
                at = one["annotations"]["runbook_url"]
                assert at == f"https://runbooks.example/flywheel/{one['alert']}.md"


def test_scraped_jobs_have_the_names_that_the_alerts_know(
    resources: list[dict[str, Any]],
) -> None:
    scrapes = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    known = {scrape["job_name"] for scrape in scrapes["scrape_configs"]}
    services = [one for one in resources if one["kind"] == "Service"]
    jobs = set()
    for monitor in (one for one in resources if one["kind"] == "ServiceMonitor"):
        (endpoint,) = monitor["spec"]["endpoints"]
        (rename,) = endpoint["relabelings"]
        jobs.add(rename["replacement"])
        (service,) = (one for one in services if _chosen(monitor["spec"]["selector"], one))
        assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
        plane = rename["replacement"].removeprefix("flywheel-")
        assert service["metadata"]["name"].startswith(f"fly-flywheel-{plane}")
    assert jobs <= known
    assert len(jobs) == 2


def _chosen(selector: Mapping[str, Any], resource: Mapping[str, Any]) -> bool:
    labels: Mapping[str, str] = resource["metadata"].get("labels", {})
    wanted: Mapping[str, str] = selector["matchLabels"]
    return wanted.items() <= labels.items()


def test_services_and_policies_choose_the_pods_that_they_mean(
    resources: list[dict[str, Any]],
) -> None:
    pods = {
        "learner": named(resources, "StatefulSet", "-learner")["spec"]["template"],
        "gateways": named(resources, "Deployment", "-example-app")["spec"]["template"],
    }
    for name, meant in pods.items():
        service = named(resources, "Service", f"-{name}")
        assert _chosen({"matchLabels": service["spec"]["selector"]}, meant)
        policy = named(resources, "NetworkPolicy", f"-{name}")
        assert _chosen(policy["spec"]["podSelector"], meant)
        other = pods["gateways" if name == "learner" else "learner"]
        assert not _chosen({"matchLabels": service["spec"]["selector"]}, other)
        assert not _chosen(policy["spec"]["podSelector"], other)
    rules = named(resources, "NetworkPolicy", "-gateways")["spec"]["ingress"]
    open_ports = [port for rule in rules if "from" not in rule for port in rule["ports"]]
    tcp = [p for p in open_ports if p.get("protocol", "TCP") == "TCP"]
    assert not any(port["port"] <= 8700 <= port["endPort"] for port in tcp)
    for number in (1, 80, 8080, 8699, 8701, 65535):  # the app's own stay as they were
        assert any(port["port"] <= number <= port["endPort"] for port in tcp)


def test_a_chart_of_yours_includes_the_gateway(tmp_path: Path) -> None:
    for name, text in OWN_CHART.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    shutil.copytree(CHART, tmp_path / "charts" / "flywheel")
    values = tmp_path / "own-values.yaml"
    minimal = MINIMAL.strip().replace("\n", "\n  ")
    values.write_text(f"flywheel:\n  {minimal}\n")
    text = render(values, chart=tmp_path, release="shop")
    assert "Invalid: 0, Errors: 0, Skipped: 0" in check(text, "1.37.0")
    (own,) = (one for one in yaml.safe_load_all(text) if one and one["kind"] == "Deployment")
    spec = own["spec"]["template"]["spec"]
    (gateway,) = spec["initContainers"]
    assert gateway["args"] == ["gateway", "--keep-running"]
    environment = {entry["name"]: entry["value"] for entry in gateway["env"]}
    assert environment["FLYWHEEL_GATEWAY__LEARNER_URL"] == "http://shop-flywheel-learner:8701"
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert volumes["flywheel-secrets"]["secret"]["secretName"] == "ours"
    assert volumes["flywheel-settings"]["configMap"]["name"] == "shop-flywheel"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("gatway.threads=2", "'gatway' not allowed"),
        ("learner.replicas=2", "'replicas' not allowed"),
        ("settings=[tasks.a]", "needs [kafka] with bootstrap_servers"),
        ("gateway.threads=0", "minimum"),
    ],
)
def test_values_that_mean_nothing_are_refused(change: str, sentence: str) -> None:
    refused = said(tools().helm, "template", "fly", CHART, "--set", change, expect=1)
    assert sentence in refused


def test_the_chart_is_of_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == chart["version"] == version
