"""What a file that is not Parquet looks like, from its first bytes."""

#: How many bytes `appearance` needs.
HEAD_BYTES = 64
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"PAR1", "a Parquet file whose end is missing"),
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
    (b"\xff\x06\x00\x00sNaPpY", "snappy"),
    (b"PK\x03\x04", "a zip archive"),
    (b"ORC", "ORC"),
    (b"Obj\x01", "Avro"),
    (b"ARROW1", "Arrow IPC"),
    (b"SQLite format 3", "an SQLite database"),
    (b"version https://git-lfs", "a Git LFS pointer"),
)


def appearance(head: bytes) -> str:
    """What a file that begins with these bytes looks like."""
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith((b"{", b"[")):
        return "JSON"
    if start.startswith(b"<"):
        return "HTML or XML"
    # The last character may be cut off.
    text = head.decode(errors="ignore")
    if len(text.encode()) + 3 >= len(head) and (text.isprintable() or "\n" in text):
        return "text, such as CSV"
    return "no format that is known here"
