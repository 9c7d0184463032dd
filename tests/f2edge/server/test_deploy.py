"""The files of deploy/: what they name exists in `f2edge serve`, and the times of a pod's end add up."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from f2edge.server import lifecycle
from f2edge.server.rpc import SERVICE

FOLDER = Path(__file__).parents[3] / "deploy"
#: What ``Engine.close`` may take.
ENGINE_S = 5.0


@pytest.fixture(scope="module")
def documents() -> dict[str, Any]:
    """Of the manifest, by kind."""
    return {document["kind"]: document for document in yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text(encoding="utf-8"))}


@pytest.fixture(scope="module")
def options() -> set[str]:
    """That `f2edge serve` has."""
    program = "from f2edge.cli.main import main; main()"
    environment = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", program, "serve", "--help"], capture_output=True, text=True, check=True, env=environment)
    return set(re.findall(r"--[a-z][a-z-]+", done.stdout))


def pod(documents: dict[str, Any]) -> dict[str, Any]:
    return dict(documents["Deployment"]["spec"]["template"]["spec"])


def container(documents: dict[str, Any]) -> dict[str, Any]:
    (only,) = pod(documents)["containers"]
    return dict(only)


def arguments(documents: dict[str, Any]) -> dict[str, str]:
    """Options of the image's entry point and of the manifest together, as the container runs."""
    entry = entry_point()
    image = dict(zip(entry[2::2], entry[3::2], strict=True))
    return image | {name: value for name, _, value in (argument.partition("=") for argument in container(documents)["args"])}


def entry_point() -> list[str]:
    (line,) = re.findall(r"^ENTRYPOINT (\[.*\])$", containerfile(), re.MULTILINE)
    return list(yaml.safe_load(line))


def containerfile() -> str:
    return (FOLDER / "Containerfile").read_text(encoding="utf-8")


def test_every_option_exists(documents: dict[str, Any], options: set[str]) -> None:
    assert entry_point()[:2] == ["f2edge", "serve"]
    assert set(arguments(documents)) <= options
    comments = [line for line in containerfile().splitlines() if line.startswith("#")]
    named = {option for line in comments for option in re.findall(r"(?<=\s)--(?:host|tls-[a-z]+|bundle)\b", line)}
    assert named == {"--host", "--tls-cert", "--tls-key", "--bundle"}
    assert named <= options


def test_the_image_installs_locked_versions_by_hash_only() -> None:
    lock = (FOLDER / "requirements.lock").read_text(encoding="utf-8")
    pins = re.findall(r"^([a-z0-9-]+)==[^ ]+.*?((?:\\\n    --hash=sha256:[0-9a-f]{64}\s*)+)", lock, re.MULTILINE)
    assert len(pins) == len(re.findall("^[a-z]", lock, re.MULTILINE)) > 20
    project = (FOLDER.parent / "pyproject.toml").read_text(encoding="utf-8")
    needed = re.findall(r'^    "([a-z-]+)', project[: project.index("[project.optional")], re.MULTILINE)
    assert len(needed) > 10
    assert set(needed) <= {name for name, _ in pins}
    steps = re.findall(r"pip install .*", containerfile())
    assert [("--require-hashes" in step or "--no-deps ." in step) for step in steps] == [True, True]
    assert re.findall(r"^FROM (\S+)", containerfile(), re.MULTILINE) == ["${BASE}", "${BASE}"]


def test_ports_are_those_that_are_served(documents: dict[str, Any]) -> None:
    given = arguments(documents)
    ports = {port["name"]: port["containerPort"] for port in container(documents)["ports"]}
    assert ports == {"grpc": int(given["--port"]), "health": int(given["--health-port"]), "metrics": int(given["--metrics-port"])}
    (exposed,) = re.findall(r"^EXPOSE (.*)$", containerfile(), re.MULTILINE)
    assert set(map(int, exposed.split())) == set(ports.values())
    (service_port,) = documents["Service"]["spec"]["ports"]
    assert service_port["targetPort"] in ports
    assert service_port["port"] == ports["grpc"]
    allowed = {port["port"] for rule in documents["NetworkPolicy"]["spec"]["ingress"] for port in rule["ports"]}
    assert allowed == set(ports.values())
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        check = container(documents)[probe]["grpc"]
        assert check["port"] == ports["health"]
        assert check.get("service", "") in ("", SERVICE.full_name)
    assert documents["Deployment"]["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"] == str(ports["metrics"])
    assert f"127.0.0.1:{ports['health']}" in containerfile()


def test_a_pod_has_time_to_end_in_order(documents: dict[str, Any]) -> None:
    given = arguments(documents)
    command = container(documents)["lifecycle"]["preStop"]["exec"]["command"]
    assert command[0] == "sleep"
    readiness = container(documents)["readinessProbe"]
    assert float(command[1]) >= readiness["periodSeconds"]
    drain_s = float(given["--lame-duck"]) + float(given["--grace"]) + lifecycle.LAST_S + ENGINE_S
    assert pod(documents)["terminationGracePeriodSeconds"] > float(command[1]) + drain_s
    assert float(given["--grace"]) > float(given["--deadline"])


def test_selectors_and_volumes_meet(documents: dict[str, Any]) -> None:
    labels = documents["Deployment"]["spec"]["template"]["metadata"]["labels"]
    selectors = (
        documents["Deployment"]["spec"]["selector"]["matchLabels"],
        documents["Service"]["spec"]["selector"],
        documents["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        documents["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    )
    assert all(selector.items() <= labels.items() for selector in selectors)
    mounts = {mount["name"]: mount["mountPath"] for mount in container(documents)["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod(documents)["volumes"]}
    given = arguments(documents)
    files = [given["--tls-cert"], given["--tls-key"], given["--token-file"]]
    assert all(Path(file).parent.as_posix() in mounts.values() for file in files)


def test_the_container_is_locked_down(documents: dict[str, Any]) -> None:
    (user,) = re.findall(r"^USER (\d+):\d+$", containerfile(), re.MULTILINE)
    assert int(user) == pod(documents)["securityContext"]["runAsUser"] > 0
    assert pod(documents)["securityContext"]["runAsNonRoot"] is True
    security = container(documents)["securityContext"]
    assert security == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    assert "--insecure" not in arguments(documents)
    assert documents["NetworkPolicy"]["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert "egress" not in documents["NetworkPolicy"]["spec"]


def test_the_second_stage_needs_no_network() -> None:
    stages = re.split(r"^FROM ", containerfile(), flags=re.MULTILINE)[1:]
    assert len(stages) == 2
    assert stages[0].split()[0] == stages[1].split()[0]  # the environment copied was made by the same interpreter
    assert not re.search(r"\b(RUN|ADD|curl|pip)\b", stages[1])
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", stages[0], re.MULTILINE)
    for name in " ".join(copied).split():
        assert (FOLDER.parent / name).exists()


def test_the_image_s_own_health_check_is_python(documents: dict[str, Any]) -> None:
    (check,) = re.findall(r"HEALTHCHECK .*?CMD (\[.*?\])$", containerfile().replace("\\\n", ""), re.MULTILINE)
    python, flag, program = yaml.safe_load(check)
    assert (python, flag) == ("python", "-c")
    compile(program, "HEALTHCHECK", "exec")
