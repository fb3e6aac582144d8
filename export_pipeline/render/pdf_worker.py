"""Compiles one volume in a process of its own: the compiler keeps the memory of all that it compiled.

Standard input: one line of JSON (fonts, seconds since 1970), then the volume's data as JSON. Standard output:
the PDF. Nothing touches a disk or a command line, and no message is printed: the compiler's messages quote the
data. Started as a file, with ``-P``, so that neither this package nor its neighbours are imported.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

#: Exit status when the compiler refuses the data.
REFUSED = 3


def main() -> int:
    """Read the volume, write the PDF; the exit status says whether it worked."""
    _forbid_core_dumps()
    import typst

    head, _, data = sys.stdin.buffer.read().partition(b"\n")
    order = json.loads(head)
    fonts = typst.Fonts(
        include_system_fonts=False, include_embedded_fonts=True, font_paths=[*map(Path, order["fonts"])]
    )
    try:
        pdf = typst.compile(
            Path(__file__).with_name("pdf_template.typ").read_bytes(),
            font_paths=fonts,
            ignore_system_fonts=True,
            sys_inputs={"data": data.decode(), "families": json.dumps(order["families"])},
            pdf_standards=["ua-1"],
            timestamp=order["timestamp"],
            format="pdf",
        )
    except typst.TypstError:
        return REFUSED
    sys.stdout.buffer.write(pdf)
    sys.stdout.buffer.flush()
    return 0


def _forbid_core_dumps() -> None:
    try:
        import resource
    except ImportError:  # not on this system, which then writes no core files either
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    sys.exit(main())
