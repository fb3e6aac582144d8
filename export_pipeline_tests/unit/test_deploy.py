"""What stands in `deploy/` is valid as far as a machine without a cluster can tell, and names only what exists."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from export_pipeline.settings import Settings
from export_pipeline_tests.generate_docs import PROJECT, commands, variable

DEPLOY = PROJECT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
#: The versions of Kubernetes that are maintained, oldest and newest that the schemas know.
VERSIONS = ("1.33", "1.37")
FILES = sorted(path for path in DEPLOY.rglob("*") if path.is_file())
MANIFESTS = [
    path for path in FILES if path.suffix == ".yaml" and path.name not in {"kustomization.yaml", "values.yaml"}
]
#: What the S3 client reads.
AWS = {"AWS_REGION", "AWS_ENDPOINT", "AWS_ALLOW_HTTP", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}


def documents(*files: Path) -> Iterator[dict[str, Any]]:
    for file in files:
        yield from yaml.safe_load_all(file.read_text("utf-8"))


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    for document in documents(*MANIFESTS):
        if document["kind"] in {"Deployment", "Job"}:
            yield document["metadata"]["name"], document["spec"]["template"]["spec"]


PODS = dict(pods())


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(DEPLOY)))
def test_every_variable_is_a_setting(file: Path) -> None:
    text = file.read_text("utf-8")
    ours = set(re.findall(r"EXPORT_PIPELINE_[A-Z][A-Z_]*[A-Z]", text))
    assert ours - {variable(name) for name in Settings.model_fields} == set()
    assert set(re.findall(r"\bAWS_[A-Z_]+", text)) <= AWS


def test_the_examples_load_as_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told = {}
    for file in (DEPLOY / "systemd/export-pipeline.env.example", DEPLOY / "celery/celery.env.example"):
        lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
        told |= dict(line.split("=", 1) for line in lines)
    assert settings_of(told, monkeypatch, tmp_path).launcher == "celery"


def test_the_config_map_and_the_secret_load_as_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told: dict[str, str] = {}
    for document in documents(KUBERNETES / "base/settings.yaml", KUBERNETES / "secret.example.yaml"):
        told |= document.get("data") or document["stringData"]
    made = settings_of(told, monkeypatch, tmp_path)
    assert made.database_url is not None
    # Behind an ingress; without it the trail has its address in the place of everybody's.
    assert made.api_trusted_proxies and made.smtp_url
    assert made.max_concurrent_runs == instance("runs-as-jobs")["run_coordinator"]["config"]["max_concurrent_runs"]


def settings_of(told: dict[str, str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> Settings:
    monkeypatch.chdir(folder)
    for name, value in told.items():
        if name.startswith("EXPORT_PIPELINE_"):
            monkeypatch.setenv(name, value)
    return Settings(_env_file=None)


def test_no_secret_stands_here() -> None:
    found = []
    for file in FILES:
        found += re.findall(
            r"(?:requirepass|ACCESS_KEY(?:_ID)?|_KEYS|(?:pseudonyms|signing|tokens|links)\.txt)[:= ]+([^\s/,]{4,})",
            file.read_text(),
        )
        found += re.findall(r"://[\w.-]*:([^@\s]+)@", file.read_text())
    assert len(found) > 8
    assert set(found) == {"CHANGE-ME"}


# --- systemd, Procfile, Dockerfile


@pytest.mark.parametrize(
    ("file", "pattern"),
    [
        ("systemd/export-pipeline.service", r"ExecStart=\S+/export-pipeline (\w+)"),
        ("systemd/export-pipeline-worker.service", r"ExecStart=\S+/export-pipeline (\w+)"),
        ("Procfile", r"export-pipeline (\w+)"),
        ("Dockerfile", r'CMD \["(\w+)"\]'),
    ],
)
def test_the_commands_exist(file: str, pattern: str) -> None:
    found = re.findall(pattern, (DEPLOY / file).read_text())
    assert found
    assert set(found) <= {name for name, _ in commands()}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("name", ["export-pipeline", "export-pipeline-worker"])
def test_systemd_understands_the_units(name: str, tmp_path: Path) -> None:
    unit = tmp_path / f"{name}.service"
    text = (DEPLOY / "systemd" / unit.name).read_text()
    unit.write_text(re.sub(r"ExecStart=\S+", f"ExecStart={shutil.which('true')}", text).replace("=export", "=root"))
    said = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert "Unknown key" not in said.stderr + said.stdout


# --- Kubernetes


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: str(file.relative_to(KUBERNETES)))
def test_the_manifests_are_valid(file: Path, version: str) -> None:
    validate = pytest.importorskip("kubernetes_validate").validate
    for document in documents(file):
        validate(document, version, strict=True)
        assert document["metadata"]["name" if document["kind"] == "Namespace" else "namespace"] == "export-pipeline"


def test_every_manifest_is_applied() -> None:
    named = set()
    for file in KUBERNETES.glob("*/kustomization.yaml"):
        listed = yaml.safe_load(file.read_text())["resources"]
        named |= {(file.parent / name).resolve() for name in listed if name != "../base"}
    assert named == {file for file in MANIFESTS if file.name != "secret.example.yaml"}


@pytest.mark.parametrize("name", PODS)
def test_pods_are_confined(name: str) -> None:
    pod = PODS[name]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in (*pod.get("initContainers", []), *pod["containers"]):
        confined(container)
    mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
    assert mounted <= {volume["name"] for volume in pod["volumes"]}
    assert pod["automountServiceAccountToken"] == (name in {"daemon", "webserver", "dagster-ui"})


def confined(container: dict[str, Any]) -> None:
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert not container["securityContext"]["allowPrivilegeEscalation"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["resources"]["limits"]["memory"]
    assert container["resources"]["requests"]["cpu"]


#: What a process reads of the folder of keys; the age identities come by a variable.
NEEDED = {
    "api": {"tokens", "links", "pseudonyms"},
    "webserver": {"tokens"},
    "dagster-ui": {"tokens"},
    "code-server": {"pseudonyms", "signing"},
    "migrate": {"pseudonyms", "signing"},
    "worker": {"pseudonyms", "signing"},
}


@pytest.mark.parametrize("name", NEEDED)
def test_a_pod_has_the_keys_that_it_needs(name: str, tmp_path: Path) -> None:
    [copying] = PODS[name]["initContainers"]
    [shell, option, script] = copying["command"]
    for folder in ("secret", "keys"):
        (tmp_path / folder).mkdir()
        script = script.replace(f"/{folder}/", f"{tmp_path}/{folder}/")
    for key in ("pseudonyms", "signing", "tokens", "links"):
        (tmp_path / "secret" / f"{key}.txt").write_text(key)
    subprocess.run([shell, option, script], check=True)
    made = sorted((tmp_path / "keys").iterdir())
    assert {file.stem for file in made} == {file.read_text() for file in made} == NEEDED[name]
    assert {file.stat().st_mode & 0o777 for file in made} == {0o600}
    (tmp_path / "secret" / made[0].name).unlink()
    assert subprocess.run([shell, option, script], capture_output=True, check=False).returncode != 0


@pytest.mark.parametrize("name", ["api", "code-server", "daemon", "dagster-ui", "webserver"])
def test_servers_are_watched(name: str) -> None:
    [container] = PODS[name]["containers"]
    assert "livenessProbe" in container


def test_no_web_server_of_dagster_s_own_runs() -> None:
    """It has no sign-in: only our program may serve its pages, and the chart's gets no pod."""
    serving = {name: pod["containers"][0]["command"] for name, pod in PODS.items() if _serves(pod, 3000)}
    assert serving.keys() == {"webserver", "dagster-ui"}
    assert all("export_pipeline.defs.ui" in command for command in serving.values())
    chart = values()
    assert (chart["dagsterWebserver"]["replicaCount"], chart["dagsterWebserver"]["enableReadOnly"]) == (0, False)
    assert chart["ingress"] == {"enabled": False}
    for file in (file for file in FILES if file.suffix != ".md"):
        assert not re.search(r"dagster-webserver|dagster\W+dev\b", file.read_text("utf-8")), file


def _serves(pod: dict[str, Any], port: int) -> bool:
    return any(one["containerPort"] == port for one in pod["containers"][0].get("ports", []))


def values() -> dict[str, Any]:
    [made] = documents(KUBERNETES / "values.yaml")
    return made


def test_the_ui_beside_the_chart_finds_what_the_chart_makes() -> None:
    told, pod = values()["global"], PODS["dagster-ui"]
    name = told["fullnameOverride"]
    maps = {volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume}
    assert maps == {f"{name}-instance", f"{name}-workspace-yaml"}
    assert pod["serviceAccountName"] == name
    [password] = pod["containers"][0]["env"]
    assert password["valueFrom"]["secretKeyRef"]["name"] == told["postgresqlSecretName"]
    assert values()["generatePostgresqlPasswordSecret"] is False, "its password would be known to all"
    settings, _workspace = documents(KUBERNETES / "base/settings.yaml")
    assert settings["data"]["DAGSTER_HOME"] == told["dagsterHome"], "ours is set last, and counts"


def instance(overlay: str) -> dict[str, Any]:
    [document] = documents(KUBERNETES / overlay / "instance.yaml")
    made: dict[str, Any] = yaml.safe_load(document["data"]["dagster.yaml"])
    return made


@pytest.mark.parametrize("overlay", ["runs-as-jobs", "warm-workers"])
def test_dagster_understands_its_configuration(overlay: str, tmp_path: Path) -> None:
    from dagster._core.instance.config import dagster_instance_config

    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(instance(overlay)))
    config, custom = dagster_instance_config(str(tmp_path))
    assert config["run_launcher"]["class"]
    assert custom is None


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Path:
    """Of a cluster that does not exist: nothing is asked of it."""
    file = tmp_path / "kubeconfig"
    cluster = {"name": "none", "cluster": {"server": "https://kubernetes.example.org"}}
    context = {"name": "none", "context": {"cluster": "none", "user": "none"}}
    users = [{"name": "none", "user": {}}]
    file.write_text(
        yaml.safe_dump({"clusters": [cluster], "contexts": [context], "users": users, "current-context": "none"})
    )
    return file


def test_the_job_of_a_run_is_valid_and_confined(kubeconfig: Path) -> None:
    """Rendered as Dagster's launcher would, out of its configuration."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    pytest.importorskip("dagster_k8s")
    from dagster._config import process_config, resolve_to_config_type
    from dagster_k8s.container_context import K8sContainerContext
    from dagster_k8s.job import construct_dagster_k8s_job
    from dagster_k8s.launcher import K8sRunLauncher
    from kubernetes.client import ApiClient

    config = process_config(
        resolve_to_config_type(K8sRunLauncher.config_type()), instance("runs-as-jobs")["run_launcher"]["config"]
    )
    assert config.success, config.errors
    launcher = K8sRunLauncher(**config.value | {"load_incluster_config": False, "kubeconfig_file": str(kubeconfig)})
    run = dg.DagsterRun(job_name="export_user_data")
    context = K8sContainerContext.create_for_run(run, launcher, include_run_tags=True)
    job = construct_dagster_k8s_job(
        context.get_k8s_job_config("registry.example.org/export-pipeline:0.1.0", launcher),
        args=["dagster", "api", "execute_run", "{}"],
        job_name="dagster-run-0",
        user_defined_k8s_config=context.run_k8s_config,
        component="run_worker",
    )
    rendered = ApiClient().sanitize_for_serialization(job)
    kubernetes_validate.validate(rendered, VERSIONS[-1], strict=True)
    pod = rendered["spec"]["template"]["spec"]
    for container in (*pod["initContainers"], *pod["containers"]):
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["automountServiceAccountToken"] is False
    assert {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]} >= {"/state", "/keys", "/tmp"}
    assert rendered["spec"]["backoffLimit"] == 0


@pytest.mark.parametrize("page", sorted(DEPLOY.rglob("*.md")), ids=lambda page: str(page.relative_to(DEPLOY)))
def test_every_link_leads_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8"))
    assert targets
    for target in targets:
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), target
        headings = re.findall(r"^#+ (.+)$", file.read_text("utf-8"), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}
