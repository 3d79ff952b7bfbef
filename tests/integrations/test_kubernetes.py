"""The manifest and the image for Kubernetes: valid by its own schemas, and what they run is what there is."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from farm_executor import FarmExecutor
from farm_executor.cli import main

FOLDER = Path(__file__).parents[2] / "docs" / "examples" / "kubernetes"
FILES = sorted(FOLDER.glob("*.yaml"))

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a farm's servers need fork")


@pytest.fixture(scope="module")
def objects():
    """The objects of all files, by kind."""
    yaml = pytest.importorskip("yaml")
    return {each["kind"]: each for path in FILES for each in yaml.safe_load_all(path.read_text("utf-8"))}


@pytest.fixture(scope="module")
def container(objects):
    (container,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    return container


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_objects_are_valid_by_the_newest_schemas(path):
    validator = pytest.importorskip("kubernetes_validate")
    yaml = pytest.importorskip("yaml")
    newest = validator.latest_version()

    for each in yaml.safe_load_all(path.read_text("utf-8")):
        validator.validate(each, newest, strict=True)


def test_the_objects_name_each_other(objects, container):
    deployment, service = objects["Deployment"]["spec"], objects["Service"]["spec"]
    pod = deployment["template"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    (port,), (named,) = service["ports"], container["ports"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    (variable,) = container["env"]

    assert deployment["selector"]["matchLabels"] == labels == service["selector"]
    assert service["clusterIP"] == "None"  # headless, or the name would not stand for every pod
    assert port["targetPort"] == named["name"]
    assert port["port"] == named["containerPort"]
    assert container["args"][:2] == ["serve", f"0.0.0.0:{port['port']}"]
    assert volumes["key"]["secret"]["secretName"] == objects["Secret"]["metadata"]["name"]
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    assert variable["value"] == "/key/" + next(iter(objects["Secret"]["stringData"]))


def test_the_image_runs_as_the_manifests_user_and_serves_where_its_service_is(objects, container):
    image = (FOLDER / "Dockerfile").read_text("utf-8")
    pod = objects["Deployment"]["spec"]["template"]["spec"]

    assert re.findall(r"^USER (\d+)$", image, re.M) == [str(pod["securityContext"]["runAsUser"])]
    assert f"EXPOSE {container['ports'][0]['containerPort']}\n" in image
    assert 'ENTRYPOINT ["farm-executor"]\n' in image  # so that `args` are its arguments, and it gets SIGTERM


def test_the_key_that_is_to_be_replaced_admits_nobody(objects, tmp_path, capsys):
    key = tmp_path / "key"
    key.write_text(objects["Secret"]["stringData"]["key"])
    key.chmod(0o600)

    assert main(["serve", "127.0.0.1:0", "--key-file", str(key)]) == 2
    assert "key" in capsys.readouterr().err


def test_the_container_serves_answers_its_probes_and_ends_by_sigterm(container, tmp_path, no_leaks):
    key = tmp_path / "key"
    assert main(["keygen", str(key)]) == 0
    environment = {**os.environ, "FARM_EXECUTOR_KEY_FILE": str(key)}
    command = [sys.executable, "-m", "farm_executor"]
    arguments = ["127.0.0.1:0" if word.startswith("0.0.0.0:") else word for word in container["args"]]
    with subprocess.Popen(
        [*command, *arguments], stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment
    ) as server:
        try:
            address = server.stdout.readline().split()[2].rstrip(",")
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                program, *words = container[probe]["exec"]["command"]
                assert program == "farm-executor"
                asked = [*command, *words, address]
                done = subprocess.run(asked, env=environment, capture_output=True, text=True)
                assert done.returncode == 0, done.stdout + done.stderr
            with FarmExecutor(address, key_file=key) as farm:
                assert farm.submit(pow, 2, 10).result() == 1024
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0
        finally:
            server.kill()
