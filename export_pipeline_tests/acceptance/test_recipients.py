"""Files for a recipient, through the real sensor and a real run."""

from __future__ import annotations

import gzip

import pyrage
import pytest
from pyrage import x25519

from export_pipeline.models import RequestStatus
from export_pipeline.vault import keys
from export_pipeline.wiring import key_file
from export_pipeline_tests.running import Running


def test_a_row_with_a_recipient_becomes_a_file_for_it_alone(running: Running) -> None:
    identity = x25519.Identity.generate()
    request_id = running.insert(data_types=["user_clicks"], recipient=str(identity.to_public()))
    assert running.wait(request_id).status is RequestStatus.COMPLETED
    file = running.file(request_id)
    assert gzip.decompress(pyrage.decrypt(file, [identity])).startswith(b'{\n"user_id": "user-0004"')
    with pytest.raises(pyrage.DecryptError, match="No matching keys"):
        pyrage.decrypt(file, list(keys.load(key_file(running.stack.services.settings)).identities))


@pytest.mark.parametrize(
    "recipient",
    ["", "age1nonsense", "ssh-dss AAAA", f"{x25519.Identity.generate()}"],
    ids=["empty", "nonsense", "another kind", "private"],
)
def test_a_row_with_a_bad_recipient_fails_with_a_reason(running: Running, recipient: str) -> None:
    ended = running.wait(running.insert(data_types=["user_clicks"], recipient=recipient))
    assert ended.status is RequestStatus.FAILED
    assert "recipient" in ended.error_message
    assert recipient[:20] not in ended.error_message or recipient == ""
    assert running.stack.services.vault().keys(ended.request_id) == []
