"""Our daemon, whose regular rounds are an hour apart: ``python -m export_pipeline_tests.patient_daemon``.

What it does sooner, it does because it was woken.
"""

from export_pipeline.defs import daemon

_HOUR_S = 3600.0


class PatientBell(daemon.Bell):
    """Rings as ever, and waits much longer."""

    def wait(self, timeout: float) -> None:
        """Wait for a ring."""
        super().wait(max(timeout, _HOUR_S))


if __name__ == "__main__":
    daemon.Bell = PatientBell  # type: ignore[misc]
    daemon.main()
