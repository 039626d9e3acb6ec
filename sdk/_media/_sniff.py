"""What bytes are, by how they begin: names of files lie."""

from __future__ import annotations

IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp", "image/bmp", "image/avif", "image/svg+xml")
SOUNDS = ("audio/wav", "audio/mpeg", "audio/flac", "audio/ogg", "audio/mp4", "audio/aac")
VIDEOS = ("video/mp4", "video/webm", "image/gif", "image/apng")


def mime(head: bytes) -> str | None:
    """head: the first 512 bytes."""
    for start, found in (
        (b"\x89PNG\r\n\x1a\n", "image/png"),
        (b"\xff\xd8\xff", "image/jpeg"),
        (b"GIF87a", "image/gif"),
        (b"GIF89a", "image/gif"),
        (b"BM", "image/bmp"),
        (b"fLaC", "audio/flac"),
        (b"OggS", "audio/ogg"),
        (b"ID3", "audio/mpeg"),
        (b"\x1aE\xdf\xa3", "video/webm"),
    ):
        if head.startswith(start):
            return "image/apng" if found == "image/png" and b"acTL" in head[:64] else found
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return "audio/wav"
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        return "image/avif" if brand in (b"avif", b"avis") else "audio/mp4" if brand == b"M4A " else "video/mp4"
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:
        return "audio/aac" if head[1] & 0xF6 == 0xF0 else "audio/mpeg"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"<svg") or (start.startswith((b"<?xml", b"<!doctype svg", b"<!--")) and b"<svg" in start):
        return "image/svg+xml"
    return None


def size_of(head: bytes, found: str) -> dict[str, int]:
    """Width and height, where the first bytes tell."""
    if found in ("image/png", "image/apng") and len(head) >= 24:
        return {"width": int.from_bytes(head[16:20], "big"), "height": int.from_bytes(head[20:24], "big")}
    if found == "image/gif" and len(head) >= 10:
        return {"width": int.from_bytes(head[6:8], "little"), "height": int.from_bytes(head[8:10], "little")}
    return {}
