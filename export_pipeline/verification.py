"""The additional verification: whoever asks for sensitive data shows once more that it is them.

By a code that goes to their e-mail address, or by having signed in with their own hands a moment ago. A stolen token
alone is then not enough.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from hashlib import sha256

from export_pipeline.db.verification_codes import Outcome, VerificationCodeStore
from export_pipeline.errors import ExportPipelineError, InvalidRequest, VerificationRequired
from export_pipeline.identity import Principal
from export_pipeline.mail import Mailer
from export_pipeline.models import Actor

LIFETIME = timedelta(minutes=10)
TRIES = 5
PER_HOUR = 5
_DIGITS = 8
_PURPOSE = "verification codes"
_SUBJECT = "Your code"
_TEXT = """Somebody, probably you, asked for an export of your data. To go on, enter this code:

    {code}

It counts once, for {minutes} minutes. If it was not you, do nothing, and change your password: whoever asked is
signed in as you.
"""


class Verification:
    """Sends codes and takes them.

    Args:
        store: The table of codes.
        mailer: Sends them.
        key: Gives the key of a purpose: codes are short, and their hashes must be of no use without it.
        max_age: How long a sign-in counts as recent.
    """

    def __init__(
        self, *, store: VerificationCodeStore, mailer: Mailer, key: Callable[[str], bytes], max_age: timedelta
    ) -> None:
        self._store = store
        self._mailer = mailer
        self._key = key
        self._max_age = max_age

    def send(self, principal: Principal) -> datetime:
        """Send a code to the person's e-mail address; a code from before does not count any more.

        Returns:
            Until when it counts.

        Raises:
            InvalidRequest: No mail can be sent here, or the person has no e-mail address that we know of.
            TooManyCodes: Five were sent in the last hour.
            MailUnavailable: It cannot be sent now.
        """
        if not self._mailer.ready:
            raise InvalidRequest("This installation sends no codes.", hint="Sign in again, then repeat the call.")
        if principal.email is None:
            raise InvalidRequest("Your token names no e-mail address.", hint="Sign in again, then repeat the call.")
        code = f"{secrets.randbelow(10**_DIGITS):0{_DIGITS}d}"
        hashed = self._hash(principal, code)
        made = self._store.add(principal.id, hashed, lifetime=LIFETIME, tries=TRIES, per_hour=PER_HOUR)
        try:
            text = _TEXT.format(code=code, minutes=int(LIFETIME.total_seconds() // 60))
            self._mailer.send(principal.email, _SUBJECT, text)
        except ExportPipelineError:
            self._store.withdraw(made.code_id)
            raise
        return made.expires_at

    def require_verified(self, principal: Principal, code: str | None, actor: Actor) -> None:
        """Refuse whoever has not shown once more who they are. A code counts once.

        Args:
            principal: Who asks.
            code: What they entered, if anything.
            actor: The same person for the trail.

        Raises:
            VerificationRequired: They have not; says how to go on.
        """
        if code is None:
            if not self._recent(principal):
                raise VerificationRequired(
                    "A sensitive data type needs a fresh verification.",
                    hint="Ask for a code by POST /api/verification, or sign in again; then repeat the call.",
                )
            return
        outcome = self._store.attempt(principal.id, self._hash(principal, code), actor)
        if outcome is Outcome.WRONG:
            raise VerificationRequired("The code is wrong.", hint=f"It may be tried {TRIES} times.")
        if outcome is Outcome.NONE:
            raise VerificationRequired("There is no code that counts.", hint="Ask for one by POST /api/verification.")

    def _recent(self, principal: Principal) -> bool:
        signed_in = principal.auth_time
        # A time in the future is nobody's sign-in; clocks differ by half a minute.
        return signed_in is not None and timedelta(seconds=-30) <= datetime.now(UTC) - signed_in <= self._max_age

    def _hash(self, principal: Principal, code: str) -> bytes:
        digits = code.replace(" ", "").replace("-", "")
        bound = f"{len(principal.id)}:{principal.id}:{digits}".encode("utf-8", "surrogatepass")
        return hmac.new(self._key(_PURPOSE), bound, sha256).digest()
