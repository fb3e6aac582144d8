"""Makes sealed sample files that every later version must open: `python -m export_pipeline_tests.make_vectors FOLDER`.

Run once for each `format_version`, into a new folder below `export_pipeline_tests/vectors`; what is there is never made
again, because its purpose is to be old.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from pyrage import x25519

from export_pipeline import demo, wiring
from export_pipeline.delivery import deliver
from export_pipeline.models import Actor, ExportFormat
from export_pipeline.settings import Settings
from export_pipeline.vault import signing
from export_pipeline_tests.exporting import execute

_ME = Actor(id="vectors")
_USER = "user-0004"


def make(folder: Path, services: wiring.Services) -> None:
    """Write a file of each format, sealed for the installation and for a recipient, and the keys that open them."""
    folder.mkdir(parents=True)
    person = x25519.Identity.generate()
    (folder / "recipient.txt").write_text(f"{person}\n")
    (folder / "installation.txt").write_text(wiring.key_file(services.settings).read_text())
    [signer] = signing.facts(wiring.signing_key_file(services.settings))
    (folder / "signing.pub").write_text(f"{signer.public_key}\n")
    expected = {}
    for form in ExportFormat:
        for recipient in (None, str(person.to_public())):
            name = f"{form.value}{'-recipient' if recipient else ''}.age"
            expected[name] = _file(folder / name, services, form, recipient)
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def _file(file: Path, services: wiring.Services, form: ExportFormat, recipient: str | None) -> dict[str, object]:
    request = services.intake.request(
        user_id=_USER, data_types=[], actor=_ME, format=form, kind="gdpr", recipient=recipient
    )
    execute(services, request.request_id)
    delivered = deliver(services.database, services.vault(), request.request_id, _ME)
    metadata = delivered.metadata
    file.write_bytes(b"".join(services.vault().sealed(metadata.storage_key)))
    return {
        "delivered_as": delivered.file_name,
        "delivered_sha256": metadata.sha256,
        "content_encoding": metadata.content_encoding,
        "rows": {part["data_type"]: part["rows"] for part in metadata.manifest["parts"]},
        "sha256": {part["data_type"]: part["sha256"] for part in metadata.manifest["parts"]},
    }


def main() -> None:
    """Run it on an installation of its own."""
    with tempfile.TemporaryDirectory() as home:
        settings = Settings(_env_file=None, home=Path(home) / "home")
        with wiring.connect(settings) as services:
            demo.install_sample(services)
            make(Path(sys.argv[1]), services)


if __name__ == "__main__":
    main()
