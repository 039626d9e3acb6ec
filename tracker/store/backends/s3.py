"""Objects in any S3-compatible service, by boto3: checksums both ways, multipart for what is large, presigned URLs."""

from __future__ import annotations

import bisect
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import BinaryIO

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from tracker.store.backends.base import MissingObject, StoreTrouble, checked

PART_BYTES = 16 * 2**20
SMALL_GAP = 64 * 2**10
"""Two ranges nearer than this cost less as one request than as two."""
RANGE_BYTES = 8 * 2**20
"""More than this comes by several connections at once."""
BODY_TRIES = 3
_MISSING = {"404", "NoSuchKey", "NotFound"}


class S3:
    """``settings``: endpoint ("" for AWS), bucket, access_key, secret_key, region, prefix, class (of storage; the bucket's own without)."""

    is_remote = True

    def __init__(self, settings: dict[str, str]) -> None:
        self.bucket = settings["bucket"]
        self.prefix = settings.get("prefix", "").strip("/")
        self.more = {"ChecksumAlgorithm": "CRC32"} | ({"StorageClass": settings["class"]} if settings.get("class") else {})
        self.client = boto3.client(
            "s3",
            endpoint_url=settings.get("endpoint") or None,
            aws_access_key_id=settings.get("access_key") or None,
            aws_secret_access_key=settings.get("secret_key") or None,
            region_name=settings.get("region") or "us-east-1",
            config=Config(
                s3={"addressing_style": "path" if settings.get("endpoint") else "auto"},
                signature_version="s3v4",
                connect_timeout=10,
                read_timeout=60,
                max_pool_connections=32,
                retries={"mode": "standard", "max_attempts": 4},
            ),
        )
        # Without "Expect: 100-continue": where the connection ends within that answer, botocore 1.x reads its end for ever, at full speed.
        self.client.meta.events.register("before-sign.s3", _expect_nothing)
        self.transfer = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=4)
        self.pool = ThreadPoolExecutor(8, thread_name_prefix="s3")

    def _name(self, key: str) -> str:
        return f"{self.prefix}/{checked(key)}" if self.prefix else checked(key)

    def put(self, key: str, data: bytes | BinaryIO) -> int:
        name = self._name(key)
        if isinstance(data, bytes | bytearray | memoryview):
            if len(data) <= PART_BYTES:
                self.client.put_object(Bucket=self.bucket, Key=name, Body=bytes(data), **self.more)
                return len(data)
            data = io.BytesIO(data)
        counted = _Counted(data)
        # A multipart upload appears whole when it completes; boto3 aborts it when a part fails.
        self.client.upload_fileobj(counted, self.bucket, name, Config=self.transfer, ExtraArgs=self.more)
        return counted.total

    def _get(self, key: str, **more):
        try:
            return self.client.get_object(Bucket=self.bucket, Key=self._name(key), **more)
        except ClientError as problem:
            code = problem.response["Error"]["Code"]
            if code in _MISSING:
                raise MissingObject(key) from None
            if code == "InvalidRange":
                raise
            raise StoreTrouble(f"{key}: {problem}") from problem
        except BotoCoreError as problem:
            raise StoreTrouble(f"{key}: {problem}") from problem

    def open(self, key: str) -> BinaryIO:
        return self._get(key, ChecksumMode="ENABLED")["Body"]

    def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        if end is not None and end <= start:
            return b""
        more = {"ChecksumMode": "ENABLED"} if start == 0 and end is None else {"Range": f"bytes={start}-{'' if end is None else end - 1}"}
        for tried in range(1, BODY_TRIES + 1):
            try:
                return self._get(key, **more)["Body"].read()
            except ClientError:
                return b""  # InvalidRange: it begins behind the object's end
            except (BotoCoreError, HTTPError, OSError) as problem:
                # botocore tries a request again, but not a body that breaks off midway.
                if isinstance(problem, StoreTrouble) or tried == BODY_TRIES:
                    raise problem if isinstance(problem, StoreTrouble) else StoreTrouble(f"{key}: {problem}") from problem
        raise AssertionError

    def ranges(self, key: str, spans: list[tuple[int, int]]) -> list[bytes]:
        """Neighbours are read together, the rest at once by several connections."""
        joined: list[list[int]] = []
        for start, end in sorted(spans):
            if joined and start - joined[-1][1] <= SMALL_GAP and (end <= joined[-1][1] or end - joined[-1][0] <= RANGE_BYTES):
                joined[-1][1] = max(joined[-1][1], end)
            else:
                joined.append([start, end])
        reads = map if len(joined) == 1 else self.pool.map
        parts = list(reads(lambda span: self.read(key, *span), joined))
        found = []
        for start, end in spans:
            at = bisect.bisect_right(joined, [start, 2**63]) - 1
            found.append(parts[at][start - joined[at][0] : end - joined[at][0]])
        return found

    def size(self, key: str) -> int:
        try:
            return self.client.head_object(Bucket=self.bucket, Key=self._name(key))["ContentLength"]
        except ClientError as problem:
            if problem.response["Error"]["Code"] in _MISSING:
                raise MissingObject(key) from None
            raise

    def exists(self, key: str) -> bool:
        try:
            self.size(key)
        except MissingObject:
            return False
        return True

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=self.bucket, Key=self._name(key))

    def list(self, prefix: str) -> Iterator[tuple[str, int, datetime]]:
        skip = len(self.prefix) + 1 if self.prefix else 0
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self._name(prefix) + "/"):
            for entry in page.get("Contents", []):
                yield entry["Key"][skip:], entry["Size"], entry["LastModified"]

    def presign_get(self, key: str, seconds: int) -> str | None:
        return self.client.generate_presigned_url("get_object", Params={"Bucket": self.bucket, "Key": self._name(key)}, ExpiresIn=seconds)

    def presign_put(self, key: str, bytes: int, seconds: int) -> tuple[str, dict[str, str]] | None:
        # The length is part of the signature: the URL cannot be used to store something larger.
        url = self.client.generate_presigned_url(
            "put_object", Params={"Bucket": self.bucket, "Key": self._name(key), "ContentLength": bytes}, ExpiresIn=seconds
        )
        return url, {"Content-Length": str(bytes)}


def _expect_nothing(request, **_) -> None:
    del request.headers["Expect"]


class _Counted(io.RawIOBase):
    def __init__(self, source: BinaryIO) -> None:
        self.source = source
        self.total = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        found = self.source.read(size)
        self.total += len(found)
        return found
