"""Where an export lies: a folder, or a prefix of an S3 bucket. Files appear whole or not at all."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from ..errors import UsageError

_ASIDE = ".encore-part"


class Place(Protocol):
    def names(self) -> Iterator[tuple[str, int]]:
        """(path with /, bytes) of every file."""

    def open(self, name: str) -> BinaryIO:
        """FileNotFoundError."""

    def aside(self) -> Any:
        """A file to write that nobody sees yet; ``keep`` or its own ``close`` ends it."""

    def keep(self, file: Any, name: str) -> None:
        """What was written aside is now ``name``, in one step."""

    def remove(self, name: str) -> None: ...

    def close(self) -> None:
        """Nothing more is written."""


def place(to: str) -> Place:
    """``s3://bucket/prefix``, else a folder (made if need be). UsageError."""
    return Bucket(to) if to.startswith("s3://") else Folder(Path(to))


class Folder:
    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{root} cannot be made a folder: {error.strerror}") from None

    def clean(self) -> None:
        """Remove what an export that died left half written. Only for who has the place for himself."""
        with contextlib.suppress(OSError):
            for path in (self.root / _ASIDE).iterdir():  # of an export that died
                path.unlink()

    def names(self) -> Iterator[tuple[str, int]]:
        for folder, folders, files in os.walk(self.root):
            folders[:] = [name for name in folders if name != _ASIDE]
            for name in files:
                path = Path(folder, name)
                yield path.relative_to(self.root).as_posix(), path.stat().st_size

    def open(self, name: str) -> BinaryIO:
        return (self.root / name).open("rb")

    def aside(self) -> Any:
        (self.root / _ASIDE).mkdir(exist_ok=True)
        return tempfile.NamedTemporaryFile(dir=self.root / _ASIDE, delete=False)

    def keep(self, file: Any, name: str) -> None:
        file.close()
        target = self.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.chmod(file.name, 0o666 & ~_umask())
        os.replace(file.name, target)

    def remove(self, name: str) -> None:
        path = self.root / name
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        with contextlib.suppress(OSError):  # only when empty
            path.parent.rmdir()
            path.parent.parent.rmdir()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            (self.root / _ASIDE).rmdir()


def _umask() -> int:
    found = os.umask(0)
    os.umask(found)
    return found


class Bucket:
    """By boto3 and its own settings (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL_S3, …)."""

    def __init__(self, to: str) -> None:
        try:
            import boto3
        except ModuleNotFoundError:
            raise UsageError("s3:// needs boto3: pip install boto3") from None
        self.bucket, _, prefix = to.removeprefix("s3://").partition("/")
        self.prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""
        if not self.bucket:
            raise UsageError(f"{to!r} names no bucket; it looks like s3://bucket/prefix")
        self.client = boto3.client("s3")

    def names(self) -> Iterator[tuple[str, int]]:
        with self._said():
            for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix):
                for entry in page.get("Contents", []):
                    yield entry["Key"][len(self.prefix) :], entry["Size"]

    def open(self, name: str) -> BinaryIO:
        with self._said():
            try:
                found: BinaryIO = self.client.get_object(Bucket=self.bucket, Key=self.prefix + name)["Body"]
                return found
            except self.client.exceptions.NoSuchKey:
                raise FileNotFoundError(name) from None

    def aside(self) -> Any:
        return tempfile.SpooledTemporaryFile(max_size=4 << 20)

    def keep(self, file: Any, name: str) -> None:
        with self._said():
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            if size <= 8 << 20:
                self.client.put_object(Bucket=self.bucket, Key=self.prefix + name, Body=file.read())
            else:
                self.client.upload_fileobj(file, self.bucket, self.prefix + name)  # closes it
        file.close()

    def remove(self, name: str) -> None:
        with self._said():
            self.client.delete_object(Bucket=self.bucket, Key=self.prefix + name)

    def close(self) -> None: ...

    @contextlib.contextmanager
    def _said(self) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped,unused-ignore]

        try:
            yield
        except (BotoCoreError, ClientError) as error:
            if type(error).__name__ == "NoSuchKey":
                raise
            raise UsageError(f"s3://{self.bucket}: {error}") from None
