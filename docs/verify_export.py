#!/usr/bin/env python3
"""Checks a file that export-pipeline delivered: hashes, counts and signature. Needs Python 3.9 or newer, nothing else.

    python verify_export.py FILE [--key ed25519:...]

FILE is the decrypted file: .json, .json.gz or .zip. --key is a public signing key of who made it, as
`export-pipeline keys list` shows it; give it more than once to trust several. Without a key, a signature shows only
that nothing was changed since somebody signed. docs/FORMAT.md specifies all of this. Exit code 0: the file is good.
"""

import argparse
import base64
import csv
import gzip
import hashlib
import io
import json
import re
import sys
import zipfile

CHUNK = 1024 * 1024
ROW_SUFFIX = {"csv": ".csv", "ndjson": ".ndjson", "parquet": ".parquet", "pdf": ".ndjson"}


class Bad(Exception):
    """The file is not what it says."""


# --- Ed25519 (RFC 8032), in plain numbers: slow, and quick enough for one signature

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
ROOT = pow(2, (P - 1) // 4, P)


def add(a, b):
    """Add two points of the curve, each as (X, Y, Z, T) with x = X/Z, y = Y/Z, xy = T/Z."""
    m, n = (a[1] - a[0]) * (b[1] - b[0]) % P, (a[1] + a[0]) * (b[1] + b[0]) % P
    c, d = 2 * a[3] * b[3] * D % P, 2 * a[2] * b[2] % P
    e, f, g, h = n - m, d - c, d + c, n + m
    return e * f % P, g * h % P, f * g % P, e * h % P


def times(factor, point):
    """Add a point to itself `factor` times."""
    total = (0, 1, 1, 0)
    while factor:
        if factor & 1:
            total = add(total, point)
        point, factor = add(point, point), factor >> 1
    return total


def decoded(data):
    """A point from its 32 bytes."""
    number = int.from_bytes(data, "little")
    sign, y = number >> 255, number & (2**255 - 1)
    if y >= P:
        raise Bad("The signature is wrong: no point of the curve.")
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * ROOT % P
    if (x * x - square) % P or (x == 0 and sign):
        raise Bad("The signature is wrong: no point of the curve.")
    x = P - x if x & 1 != sign else x
    return x, y, 1, x * y % P


def signature_holds(public, message, signature):
    """Whether the owner of `public` signed `message`."""
    if len(public) != 32 or len(signature) != 64:
        return False
    s = int.from_bytes(signature[32:], "little")
    if s >= ORDER:
        return False
    y = 4 * pow(5, P - 2, P) % P
    base = decoded(y.to_bytes(32, "little"))
    challenge = int.from_bytes(hashlib.sha512(signature[:32] + public + message).digest(), "little") % ORDER
    left, right = times(s, base), add(decoded(signature[:32]), times(challenge, decoded(public)))
    return not ((left[0] * right[2] - right[0] * left[2]) % P or (left[1] * right[2] - right[1] * left[2]) % P)


def check_signature(statement, trusted):
    """Return one sentence about who signed the manifest, together with the user's id."""
    signature = statement.pop("signature", None)
    if signature is None:
        if trusted:
            raise Bad("The file is not signed.")
        return "The manifest is not signed."
    try:
        key, algorithm = signature["public_key"], signature["algorithm"]
        public = base64.b64decode(key[len("ed25519:") :], validate=True)
        value = base64.b64decode(signature["value"], validate=True)
        known = algorithm == "Ed25519" and key.startswith("ed25519:")
        known = known and signature["key_id"] == hashlib.sha256(public).hexdigest()[:16]
    except (KeyError, TypeError, ValueError):
        known = False
    if not known:
        raise Bad("The signature has an unknown form.")
    if trusted and key not in trusted:
        raise Bad("The file is signed by another key than the one you gave: " + key)
    text = json.dumps(statement, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    if not signature_holds(public, text.encode("utf-8", "surrogatepass"), value):
        raise Bad("The signature is wrong: the manifest was changed after it was signed.")
    if trusted:
        return "Signed by the key that you trust."
    return "Unchanged since it was signed by " + key + " (give --key to say whom you trust)."


# --- the file


def once(pairs):
    """JSON objects whose names stand once: another program might take the other value."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Bad("The manifest names something twice.")
    return found


class Watched(io.RawIOBase):
    """Hashes and counts what is read through it."""

    def __init__(self, stream):
        self.stream, self.size, self.digest, self.lines = stream, 0, hashlib.sha256(), 0

    def readable(self):
        return True

    def readinto(self, buffer):
        data = self.stream.read(len(buffer))
        self.size += len(data)
        self.digest.update(data)
        self.lines += data.count(b"\n")
        buffer[: len(data)] = data
        return len(data)

    def to_the_end(self):
        while self.read(CHUNK):
            pass
        return self

    @property
    def sha256(self):
        return self.digest.hexdigest()


def check_archive(file):
    """Compare an archive with its manifest; return the manifest with the user's id."""
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        if len(set(names)) != len(names):
            raise Bad("The archive holds a name twice.")
        manifest = json.loads(archive.read("manifest.json").decode(), object_pairs_hook=once)
        suffix = ROW_SUFFIX[manifest["format"]]
        stated = {part["data_type"] + suffix: part for part in manifest["parts"]}
        volumes = {volume["name"]: volume for volume in manifest.get("volumes", [])}
        if set(names) != {"manifest.json", *stated, *volumes}:
            raise Bad("The archive does not hold the files that its manifest names.")
        for name, part in {**stated, **volumes}.items():
            with archive.open(name) as member:
                watched = Watched(member)
                rows = csv_records(watched) if suffix == ".csv" else None
                watched.to_the_end()
            if suffix == ".ndjson" and name in stated:
                rows = watched.lines
            compare(name, part, watched.size, watched.sha256, rows)
    return manifest


def csv_records(watched):
    """Records without the header."""
    csv.field_size_limit(sys.maxsize)
    text = io.TextIOWrapper(io.BufferedReader(watched, CHUNK), encoding="utf-8", newline="")
    rows = sum(1 for _ in csv.reader(text)) - 1
    text.detach().detach()
    return rows


def check_document(stream):
    """Compare a JSON document with its metadata, line by line; return the metadata with the user's id."""
    opening, found, lines, line = b"", {}, iter(stream), b""
    for line in lines:
        if line == b'"data": {\n':
            break
        opening += line
    for line in lines:
        name = re.fullmatch(rb'"([A-Za-z][A-Za-z0-9_-]*)": \[\n', line)
        if not name:
            break
        if name[1].decode() in found:
            raise Bad("The file holds a data type twice.")
        found[name[1].decode()] = rows_of(lines)
    if line != b"},\n":
        raise Bad("The file is not laid out as an export.")
    head = json.loads(opening.rstrip(b",\n") + b"}", object_pairs_hook=once)
    tail = json.loads(b"{" + b"".join(lines), object_pairs_hook=once)
    if list(head) != ["user_id", "request_id", "export_date"] or list(tail) != ["metadata"]:
        raise Bad("The file is not laid out as an export.")
    manifest = tail["metadata"]
    if any(manifest.get(name) != head[name] for name in ("request_id", "export_date")):
        raise Bad("The beginning of the file does not agree with its metadata.")
    if set(found) != {part["data_type"] for part in manifest["parts"]}:
        raise Bad("The file does not hold the data types that its metadata names.")
    for part in manifest["parts"]:
        compare(part["data_type"], part, *found[part["data_type"]])
    return {"user_id": head["user_id"], **manifest}


def rows_of(lines):
    """Size, hash and number of the rows up to the bracket; the last line feed does not count."""
    size, digest, rows, held = 0, hashlib.sha256(), 0, b""
    for line in lines:
        if line.startswith(b"]"):
            digest.update(held[:-1])
            return size + len(held[:-1]), digest.hexdigest(), rows
        digest.update(held)
        size, rows, held = size + len(held), rows + 1, line
    raise Bad("The file is cut off.")


def compare(name, part, size, sha256, rows):
    """Fail where what was found is not what is stated."""
    if (size, sha256) != (part["bytes"], part["sha256"]) or rows not in (None, part.get("rows")):
        raise Bad(name + " is not as the manifest says.")


def check(file, trusted):
    """Check a file; return the manifest and one sentence about the signature."""
    with open(file, "rb") as opened:
        magic = opened.read(19)
        opened.seek(0)
        if magic == b"age-encryption.org/":
            raise Bad("This file is encrypted: open it with `age -d -i KEY` first.")
        if magic[:2] == b"\x1f\x8b":
            manifest = check_document(gzip.open(opened))
        elif magic[:2] == b"{\n":
            manifest = check_document(opened)
        else:
            manifest = check_archive(opened)
    if manifest["total_records"] != sum(part["rows"] for part in manifest["parts"]):
        raise Bad("The total of records is not the sum of the data types.")
    return manifest, check_signature(dict(manifest), trusted)


def main():
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Check a file that export-pipeline delivered.")
    parser.add_argument("file")
    parser.add_argument("--key", action="append", default=[], help="a public signing key to trust: ed25519:…")
    options = parser.parse_args()
    try:
        manifest, signed = check(options.file, options.key)
    except Bad as error:
        sys.exit("BAD: " + str(error))
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, NotImplementedError) as error:
        sys.exit("BAD: the file cannot be read as an export (" + type(error).__name__ + ").")
    except Exception as error:  # zlib.error and what damaged archives raise besides
        sys.exit("BAD: the file is damaged (" + type(error).__name__ + ").")
    for part in manifest["parts"]:
        print("{:>12} rows  {}".format(part["rows"], part["data_type"]))
    for missing in manifest["not_exported"]:
        print("not exported: {} ({})".format(missing["data_type"], missing["reason"]))
    print("Good: the file holds what its manifest says. " + signed)


if __name__ == "__main__":
    main()
