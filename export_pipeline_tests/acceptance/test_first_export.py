"""On a machine with nothing but this package, a program gets a person's data by what README and the API's page say.

`export-pipeline demo --keep` starts everything, with no setting but a state folder and free ports. The first export by
HTTP, to which README points, gives the command, the person and the data types; addresses, fields and answers come from
the OpenAPI document.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urljoin
from urllib.request import Request, urlopen

import pytest

from export_pipeline import embedded, wiring
from export_pipeline.settings import Settings
from export_pipeline_tests.running import PATIENCE_S, source_rows

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "api.md").read_text("utf-8").split("\n## A first export\n")[1].split("\n## ")[0]
_MAIN = "from export_pipeline.cli import main; main()"


def command(*words: str) -> list[str]:
    return [sys.executable, "-c", _MAIN, *words]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One on which the demo was started.

    Attributes:
        docs_url: The API's page, as the demo printed it.
        environment: Of its shell.
        folder: Where its shell is.
    """

    docs_url: str
    environment: dict[str, str] = field(repr=False)
    folder: Path

    def shell(self, line: str) -> str:
        """What a command of ours prints."""
        program, *words = shlex.split(line)
        assert program == "export-pipeline"
        return subprocess.run(
            command(*words),
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            text=True,
            timeout=PATIENCE_S,
            check=True,
        ).stdout.strip()

    @property
    def settings(self) -> Settings:
        return Settings(_env_file=None, home=Path(self.environment["EXPORT_PIPELINE_HOME"]))


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("machine")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EXPORT_PIPELINE_")}
    environment |= {f"EXPORT_PIPELINE_{name}_PORT": "0" for name in ("UI", "API")}
    environment["EXPORT_PIPELINE_HOME"] = str(folder / "home")
    # One person of the sample with few rows: in which formats the one with many is exported, other tests say.
    demo = subprocess.Popen(
        command("demo", "--keep", "--user", "user-0005"),
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        said = ""
        while "Everything is still running" not in said:
            line = demo.stdout.readline()
            assert line, f"it ended: {demo.wait(30)}\n{said}"
            said += line
        [address] = re.findall(r"^API +(\S+)$", said, re.MULTILINE)
        yield Machine(docs_url=address, environment=environment, folder=folder)
    finally:
        demo.send_signal(signal.SIGINT)
        rest, _ = demo.communicate(timeout=PATIENCE_S)
    assert demo.returncode == 0, rest
    assert not embedded.is_running(Settings(_env_file=None, home=folder / "home"))


@dataclass(frozen=True, kw_only=True)
class Script:
    """Knows where the page is and a token, and sends and reads only what the OpenAPI document names."""

    docs_url: str
    token: str = field(repr=False)

    @property
    def document(self) -> dict[str, Any]:
        with urlopen(urljoin(self.docs_url, "openapi.json"), timeout=PATIENCE_S) as answer:
            return json.load(answer)

    def schema(self, holder: dict[str, Any], kind: str = "application/json") -> dict[str, Any]:
        """What a body or an answer looks like."""
        found = holder["content"][kind]["schema"]
        return self.document["components"]["schemas"][found["$ref"].rpartition("/")[2]] if "$ref" in found else found

    def open(self, operation_id: str, body: Any = None, **values: str) -> tuple[Any, dict[str, Any]]:
        """Call an operation; gives the open answer, and what the document says of such answers."""
        [(path, method, operation)] = [
            (path, method, operation)
            for path, operations in self.document["paths"].items()
            for method, operation in operations.items()
            if operation["operationId"] == operation_id
        ]
        headers = {"Authorization": f"Bearer {self.token}"}
        if body is not None:
            wanted = self.schema(operation["requestBody"])
            assert set(wanted.get("required", [])) <= set(body) <= set(wanted["properties"])
            headers["Content-Type"] = "application/json"
        data = None if body is None else json.dumps(body).encode()
        request = Request(urljoin(self.docs_url, path.format(**values)), data, headers, method=method.upper())
        answer = urlopen(request, timeout=PATIENCE_S)
        return answer, operation["responses"][str(answer.status)]

    def call(self, operation_id: str, body: Any = None, **values: str) -> dict[str, Any]:
        """Call an operation that answers with an object, which has the fields that are announced and no other."""
        answer, announced = self.open(operation_id, body, **values)
        with answer:
            got = json.load(answer)
        schema = self.schema(announced)
        assert set(schema.get("required", [])) <= set(got) <= set(schema["properties"])
        return got

    def follow(self, request_id: str) -> dict[str, Any]:
        """The last of the states that the stream of events tells."""
        answer, announced = self.open("follow_export", request_id=request_id)
        with answer:
            assert answer.headers.get_content_type() in announced["content"]
            *_, last = [json.loads(line[6:]) for line in answer if line.startswith(b"data: ")]
        return last


@pytest.fixture
def script(machine: Machine) -> Script:
    [made] = re.findall(r"TOKEN=\$\((.*)\)", PAGE)
    return Script(docs_url=machine.docs_url, token=machine.shell(made))


def test_the_first_export_of_the_docs_gives_what_the_source_holds(machine: Machine, script: Script) -> None:
    [body] = (json.loads(found) for found in re.findall(r"-d '(.*)'", PAGE))
    offered = [one["data_type"] for one in script.call("list_data_types")["data_types"]]
    assert set(body["data_types"]) <= set(offered), "the example is one for the sample data"
    made = script.call("request_export", body)
    told = script.follow(made["request_id"])
    assert (told["status"], told["error_message"]) == ("completed", None)
    link = script.call("get_download", request_id=made["request_id"])
    with urlopen(urljoin(script.docs_url, link["download_url"]), timeout=PATIENCE_S) as answer:
        content = answer.read()
    data = json.loads(content)["data"]
    assert list(data) == body["data_types"]
    with wiring.connect(machine.settings) as services:
        expected = {name: source_rows(services, name, body["user_id"]) for name in data}
        stored = services.vault().keys(made["request_id"])
    assert data == expected
    assert all(data.values())
    assert len(stored) == 1
    assert not [file for file in machine.settings.home.rglob("*") if holds(file, content[:100])], "sealed"


def holds(file: Path, text: bytes) -> bool:
    return file.is_file() and text in file.read_bytes()


def test_the_token_is_for_that_person_alone(machine: Machine, script: Script) -> None:
    with pytest.raises(HTTPError) as refused:
        script.call("request_export", {"user_id": "user-0006", "data_types": ["user_clicks"], "format": "json"})
    with refused.value as answer:
        assert answer.code == 403
