"""Bytes of the journal, version 1: what its writer and its reader share (docs/formats.md, *Journal*)."""

from __future__ import annotations

import struct

SEGMENT_BYTES = 4 << 20
SEGMENT_MAGIC = b"ENCOREJ1"
SEGMENT_HEADER = struct.Struct("<8sIIQQ16sqq")  # magic, header bytes, flags, number, first record, writer, anchor wall µs, anchor mono ns

MAGIC = 0x4E45
MAGIC_BYTES = b"EN"
RECORD = struct.Struct("<IHBBIIQqq")  # crc, magic, kind, flags, length, key list, record, step, time
RECORD_BYTES = RECORD.size
PREFIX = struct.Struct("<HBBII")  # the constant part of a dense record behind its crc
MAX_RECORD_BYTES = 1 << 20
MAX_PAYLOAD_BYTES = MAX_RECORD_BYTES - RECORD_BYTES

DENSE, SPARSE, KEYLIST, KEYS, DOC, END = 1, 2, 3, 4, 5, 6
KINDS = frozenset((DENSE, SPARSE, KEYLIST, KEYS, DOC, END))
SPARSE_ENTRY = struct.Struct("<II8s")

NO_STEP = -(2**63)
MAX_KEY_LISTS = 256
DOC_BYTES = 256 << 10  # a longer document goes to blobs/
MAX_KEYS_A_RECORD = 8192  # so that a key list's JSON stays below 1 MiB for keys of up to ~120 bytes


def segment_name(number: int) -> str:
    return f"{number:08d}.seg"


def padded(payload: bytes, filler: bytes = b" ") -> bytes:
    return payload + filler * (-len(payload) % 8)
