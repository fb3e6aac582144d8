"""Keys that AWS KMS keeps closed: the key file then holds each identity encrypted by a key that never leaves KMS.

The encryption context names what is inside and its public key. KMS opens it for the same context only, so wrapped
identities cannot be exchanged, and its log (CloudTrail) shows which one was opened.
"""

from __future__ import annotations

import base64
import binascii
from functools import cached_property
from typing import Any

from export_pipeline.errors import KeyServiceUnavailable, KeyUnusable

#: What KMS calls its refusals → what helps. Anything else is told by its name.
_HINTS = {
    "AccessDeniedException": "Allow kms:Encrypt and kms:Decrypt for the account that runs this.",
    "NotFoundException": "Check EXPORT_PIPELINE_KMS_KEY_ID and the region.",
    "DisabledException": "Enable the key in KMS.",
    "KMSInvalidStateException": "Enable the key in KMS, or cancel its deletion.",
    "InvalidCiphertextException": "The wrapped key was altered or exchanged: restore the key file.",
    "IncorrectKeyException": "The wrapped key belongs to another key of KMS.",
    "ExpiredTokenException": "Renew the AWS credentials.",
    "UnrecognizedClientException": "Check the AWS credentials.",
}
_PASSING = {
    "DependencyTimeoutException",
    "KMSInternalException",
    "KeyUnavailableException",
    "LimitExceededException",
    "RequestTimeout",
    "ServiceUnavailableException",
    "ThrottlingException",
}


class AwsKms:
    """Wraps and unwraps age identities. Region, credentials and endpoint come from the variables AWS_*.

    Args:
        key_id: The key in KMS: id, ARN or alias.
    """

    def __init__(self, key_id: str) -> None:
        self._key_id = key_id

    def wrap(self, identity: str, public_key: str) -> str:
        """See `keys.Wrapper`.

        Raises:
            KeyUnusable: KMS refuses.
            KeyServiceUnavailable: It does not answer.
        """
        answer = self._ask(
            "encrypt", KeyId=self._key_id, Plaintext=identity.encode(), EncryptionContext=_context(public_key)
        )
        return base64.b64encode(answer["CiphertextBlob"]).decode()

    def unwrap(self, wrapped: str, public_key: str) -> str:
        """See `keys.Wrapper`. Which keys of KMS may be used is the policy's business, so that the setting can move on.

        Raises:
            KeyUnusable: KMS refuses, or the text is damaged.
            KeyServiceUnavailable: It does not answer.
        """
        try:
            blob = base64.b64decode(wrapped, validate=True)
        except binascii.Error:
            raise KeyUnusable("A wrapped key is damaged.", hint="Restore the key file from the backup.") from None
        answer = self._ask("decrypt", CiphertextBlob=blob, EncryptionContext=_context(public_key))
        return bytes(answer["Plaintext"]).decode("ascii", errors="replace")

    @cached_property
    def _client(self) -> Any:
        try:
            import boto3
            from botocore.config import Config
        except ImportError:
            raise KeyUnusable(
                "EXPORT_PIPELINE_KMS_KEY_ID needs the package boto3.", hint="Run `pip install 'export-pipeline[kms]'`."
            ) from None
        return boto3.client("kms", config=Config(connect_timeout=5, read_timeout=10, retries={"max_attempts": 3}))

    def _ask(self, action: str, **values: Any) -> Any:
        """Call KMS; the library's own words name accounts, addresses and keys, ours do not."""
        try:
            return getattr(self._client, action)(**values)
        except KeyUnusable:
            raise
        except Exception as error:
            raise _refused(error) from None


def _context(public_key: str) -> dict[str, str]:
    return {"export-pipeline": "age identity", "public-key": public_key}


def _refused(error: Exception) -> KeyUnusable:
    answer = getattr(error, "response", None)
    if not isinstance(answer, dict):
        # Not KMS said no, but the way to it: no region, no credentials, no connection.
        return KeyServiceUnavailable(
            f"The key service cannot be asked ({type(error).__name__}).",
            hint="Check AWS_REGION, the AWS credentials and the network.",
        )
    code = str(answer.get("Error", {}).get("Code", "unknown"))
    if code in _PASSING:
        return KeyServiceUnavailable(f"The key service is busy ({code}).", hint="Try again.")
    return KeyUnusable(f"The key service refuses ({code}).", hint=_HINTS.get(code, ""))
