"""ZIP archives (PKWARE APPNOTE 6.3) from members that are compressed already, written and read as a stream.

The libraries compress what they are given; our parts are raw deflate streams with known sizes and checksums, so the
archive is framed around them. Sizes stand in the local headers, so that a reader needs no central directory.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from isal import isal_zlib

from export_pipeline.errors import FileNotVerified
from export_pipeline.render.streams import Scanner, inflate

_LOCAL = struct.Struct("<4sHHHHHLLLHH")
_CENTRAL = struct.Struct("<4sHHHHHHLLLHHHHHLL")
_END64 = struct.Struct("<4sQHHLLQQQQ")
_LOCATOR64 = struct.Struct("<4sLQL")
_END = struct.Struct("<4sHHHHLLH")
_EXTRA64 = struct.Struct("<HHQQ")
_EXTRA64_CENTRAL = struct.Struct("<HHQQQ")

_LOCAL_MAGIC, _CENTRAL_MAGIC = b"PK\x03\x04", b"PK\x01\x02"
_VERSION = 45
_MADE_BY_UNIX = 3 << 8 | _VERSION
_UTF8_NAMES = 0x800
_STORED, _DEFLATED = 0, 8
_OWNER_ONLY_FILE = 0o100600 << 16
_ALL_ONES_32, _ALL_ONES_16 = 0xFFFFFFFF, 0xFFFF


@dataclass(frozen=True, kw_only=True)
class Member:
    """One file of an archive.

    Attributes:
        name: Path inside the archive.
        size: Bytes of the file.
        crc32: Of the file.
        packed_size: Bytes as they stand in the archive.
        packed: Those bytes.
        deflated: Whether they are a raw deflate stream; else they are the file itself.
    """

    name: str
    size: int
    crc32: int
    packed_size: int
    packed: Iterable[bytes]
    deflated: bool = True


@dataclass(frozen=True, kw_only=True)
class FoundMember:
    """One file of an archive that is being read; `content` must be read to its end before the next one."""

    name: str
    content: Iterator[bytes]


def text_member(name: str, text: bytes) -> Member:
    """A small file."""
    compressor = zlib.compressobj(6, zlib.DEFLATED, -15)
    packed = compressor.compress(text) + compressor.flush()
    return Member(name=name, size=len(text), crc32=zlib.crc32(text), packed_size=len(packed), packed=[packed])


def write(members: Iterable[Member], modified: datetime) -> Iterator[bytes]:
    """Yield an archive. Every record is of the 64-bit kind: no size is too large, and there is one way to read it.

    Args:
        members: In the archive's order.
        modified: The members' time; zip has no time zone, so give UTC.
    """
    directory = _Directory(_dos_time(modified))
    for member in members:
        yield directory.add(member)
        yield from member.packed
    yield directory.entries
    yield directory.end


def read(chunks: Iterable[bytes]) -> Iterator[FoundMember]:
    """Read an archive that `write` made, member after member, in constant memory.

    Every byte that is not content must be the one that `write` would write: so what other programs read from the
    directory at the end is what was read here from the front.

    Raises:
        FileNotVerified: It is something else, cut off or damaged.
    """
    scanner = Scanner(chunks)
    directory = None
    names: set[str] = set()
    while (magic := scanner.exactly(4)) == _LOCAL_MAGIC:
        member, stamp, header = _read_header(scanner)
        directory = directory or _Directory(stamp)
        if directory.add(member) != header or member.name in names:
            raise FileNotVerified("The archive is damaged.")
        names.add(member.name)
        content = inflate(member.packed) if member.deflated else member.packed
        yield FoundMember(name=member.name, content=_checked(content, member.size, member.crc32))
    directory = directory or _Directory((0, 0))
    tail = directory.entries + directory.end
    if magic + scanner.exactly(len(tail) - len(magic)) != tail or any(scanner.rest()):
        raise FileNotVerified("The archive is damaged.")


def _read_header(scanner: Scanner) -> tuple[Member, tuple[int, int], bytes]:
    """A local header whose magic has been read: what it says, its time, its bytes."""
    fixed = _LOCAL_MAGIC + scanner.exactly(_LOCAL.size - len(_LOCAL_MAGIC))
    _, _, _, method, time, date, crc32, _, _, name_length, extra_length = _LOCAL.unpack(fixed)
    name, extra = scanner.exactly(name_length), scanner.exactly(extra_length)
    if extra_length != _EXTRA64.size:
        raise FileNotVerified("The archive was not made by this program.")
    _, _, size, packed_size = _EXTRA64.unpack(extra)
    member = Member(
        name=_text(name),
        size=size,
        crc32=crc32,
        packed_size=packed_size,
        packed=scanner.pieces(packed_size),
        deflated=method == _DEFLATED,
    )
    return member, (time, date), fixed + name + extra


def _text(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise FileNotVerified("The archive is damaged.") from None


class _Directory:
    """The records around the members' bytes: a header before each, an entry for each at the end.

    Args:
        stamp: DOS time and date of all members.
    """

    def __init__(self, stamp: tuple[int, int]) -> None:
        self._stamp = stamp
        self._entries: list[bytes] = []
        self._offset = 0

    def add(self, member: Member) -> bytes:
        """Note the next member and return the header that stands before its bytes."""
        header = _local_header(member, self._stamp)
        self._entries.append(_central_header(member, self._stamp, self._offset))
        self._offset += len(header) + member.packed_size
        return header

    @property
    def entries(self) -> bytes:
        """What stands behind the last member."""
        return b"".join(self._entries)

    @property
    def end(self) -> bytes:
        """What stands behind the entries."""
        return _end(len(self._entries), len(self.entries), self._offset)


def _checked(content: Iterable[bytes], size: int, crc32: int) -> Iterator[bytes]:
    found_size = found_crc32 = 0
    for piece in content:
        found_size += len(piece)
        found_crc32 = isal_zlib.crc32(piece, found_crc32)
        yield piece
    if (found_size, found_crc32) != (size, crc32):
        raise FileNotVerified("The archive is damaged.")


def _local_header(member: Member, stamp: tuple[int, int]) -> bytes:
    name = member.name.encode()
    extra = _EXTRA64.pack(1, _EXTRA64.size - 4, member.size, member.packed_size)
    sizes = (_ALL_ONES_32, _ALL_ONES_32)
    method = _DEFLATED if member.deflated else _STORED
    fixed = _LOCAL.pack(
        _LOCAL_MAGIC, _VERSION, _UTF8_NAMES, method, *stamp, member.crc32, *sizes, len(name), len(extra)
    )
    return fixed + name + extra


def _central_header(member: Member, stamp: tuple[int, int], offset: int) -> bytes:
    name = member.name.encode()
    extra = _EXTRA64_CENTRAL.pack(1, _EXTRA64_CENTRAL.size - 4, member.size, member.packed_size, offset)
    method = _DEFLATED if member.deflated else _STORED
    fixed = _CENTRAL.pack(
        _CENTRAL_MAGIC, _MADE_BY_UNIX, _VERSION, _UTF8_NAMES, method, *stamp, member.crc32,
        _ALL_ONES_32, _ALL_ONES_32, len(name), len(extra), 0, 0, 0, _OWNER_ONLY_FILE, _ALL_ONES_32,
    )  # fmt: skip
    return fixed + name + extra


def _end(entries: int, size: int, offset: int) -> bytes:
    end64 = _END64.pack(b"PK\6\6", _END64.size - 12, _MADE_BY_UNIX, _VERSION, 0, 0, entries, entries, size, offset)
    locator = _LOCATOR64.pack(b"PK\6\7", 0, offset + size, 1)
    end = _END.pack(b"PK\5\6", 0, 0, *[_ALL_ONES_16] * 2, *[_ALL_ONES_32] * 2, 0)
    return end64 + locator + end


def _dos_time(moment: datetime) -> tuple[int, int]:
    time = moment.hour << 11 | moment.minute << 5 | moment.second // 2
    date = (moment.year - 1980) << 9 | moment.month << 5 | moment.day
    return time, date
