"""The files under deploy/ parse, and call commands with options that these commands have."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import typer

from fedadapt.cli.app import app

DEPLOY = Path(__file__).parents[2] / "deploy"
HOWTO = DEPLOY.parent / "docs" / "howto" / "deploy.md"

pytestmark = pytest.mark.skipif(not DEPLOY.is_dir(), reason="a source distribution has no deploy/")

yaml = pytest.importorskip("yaml")


def accepts(words):
    """Checks the words after ``fedadapt`` as the command line would, without running anything."""
    name, *rest = words
    typer.main.get_command(app).commands[name].make_context(name, rest).close()
    return name


def commands_of(text):
    """The ``fedadapt`` lines of a page's shell blocks."""
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("fedadapt ")]


def unit(name):
    """A systemd unit; keys keep their case."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str
    parser.read_string((DEPLOY / "systemd" / f"{name}.service").read_text(encoding="utf-8"))
    return parser


@pytest.mark.parametrize(("name", "command"), [("fedadapt-server", "serve"), ("fedadapt-site", "join")])
def test_units_call_what_there_is(name, command):
    """A unit has what systemd needs to start it, and its command line is one of ours."""
    found = unit(name)
    assert found["Install"]["WantedBy"] == "multi-user.target"
    program, *words = shlex.split(found["Service"]["ExecStart"])
    assert Path(program).name == "fedadapt"
    assert accepts(words) == command
    # A secret that the service may read is given to it by systemd, and named by that path.
    credential = found["Service"]["LoadCredential"].split(":")[0]
    assert any(word.endswith(f"%d/{credential}") for word in words)


def containers():
    """The containers of the Kubernetes file, by name, with the volumes of their pods."""
    found = {}
    for document in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8")):
        assert {"apiVersion", "kind", "metadata"} <= set(document)
        if document["kind"] == "StatefulSet":
            pod = document["spec"]["template"]
            assert document["spec"]["selector"]["matchLabels"] == pod["metadata"]["labels"]
            claims = {claim["metadata"]["name"] for claim in document["spec"]["volumeClaimTemplates"]}
            volumes = claims | {volume["name"] for volume in pod["spec"]["volumes"]}
            found |= {container["name"]: (container, volumes) for container in pod["spec"]["containers"]}
    return found


@pytest.mark.parametrize(("name", "command"), [("server", "serve"), ("site", "join")])
def test_pods_call_what_there_is(name, command):
    """A container's arguments are those of the image's command, and every path in them is mounted."""
    container, volumes = containers()[name]
    target = re.search(rf'AS {name}\n.*?ENTRYPOINT \["fedadapt", "(\w+)"\]', containerfile(), re.DOTALL)
    assert accepts([target[1], *container["args"]]) == command
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert set(mounts.values()) <= volumes
    paths = [match for word in container["args"] for match in re.findall(r"(?:^|=)(/\w+)", word)]
    assert set(paths) <= set(mounts)


def containerfile():
    """The text of the container file."""
    return (DEPLOY / "Containerfile").read_text(encoding="utf-8")


def test_images_are_of_the_flower_that_is_pinned():
    """The tags are the pinned release, the extras exist, and nothing is left unpinned."""
    text = containerfile()
    pinned = re.search(r"^flwr==(.+)$", (DEPLOY.parent / "constraints.txt").read_text(), re.MULTILINE)[1]
    assert re.findall(r"^FROM docker.io/flwr/(\w+):(\S+) AS", text, re.MULTILINE) == [
        ("superlink", pinned),
        ("supernode", pinned),
    ]
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name for names in re.findall(r"fedadapt\[([\w,]+)\]", text) for name in names.split(",")}
    assert extras <= set(project["optional-dependencies"])


def test_the_guide_calls_what_there_is():
    """Every fedadapt command in the guide parses, and every file of deploy/ that it names is there."""
    text = HOWTO.read_text(encoding="utf-8")
    assert {accepts(words) for words in commands_of(text)} >= {"serve", "join", "watch", "report"}
    named = re.findall(r"\]\(\.\./\.\./(deploy/[\w./-]+)\)", text)
    assert len(named) >= 4
    assert all((DEPLOY.parent / name).is_file() for name in named)


@pytest.mark.skipif(
    not all(map(shutil.which, ("bash", "openssl", "ssh-keygen"))), reason="needs openssl and ssh-keygen"
)
def test_the_guide_makes_certificates(tmp_path):
    """The three lines make a certificate for the server's name that sites trust, and a key for a site."""
    blocks = re.findall(r"```bash\n(.*?)```", HOWTO.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [
        line for block in blocks for line in block.splitlines() if line.startswith(("openssl", "ssh-keygen"))
    ]
    assert sum(line.startswith("openssl") for line in lines) == 3
    for line in lines:
        subprocess.run([shutil.which("bash"), "-c", line], cwd=tmp_path, check=True, capture_output=True)
    check = ["openssl", "verify", "-CAfile", "ca.pem", "-verify_hostname", "fed.example.org", "server.pem"]
    assert (
        subprocess.run(check, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
        == "server.pem: OK\n"
    )
    assert (tmp_path / "site.key.pub").read_text().startswith("ecdsa-sha2-nistp384 ")
