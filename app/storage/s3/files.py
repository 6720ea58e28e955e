"""The objects of a bucket as files; a listing is always read from the store, which is consistent."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, cast

from app.settings import Settings
from app.storage.remote.errors import StoreUnreachable
from app.storage.s3.client import Bucket, parse_bucket
from app.storage.s3.download import ObjectReader, check_bucket, download_file, head_object
from app.storage.s3.errors import store_errors
from app.storage.s3.upload import FileUpload, list_parts

# The largest number of keys that one request deletes.
MAX_DELETED_KEYS = 1000


@dataclass(frozen=True)
class OpenUpload:
    """An upload in parts that was not completed."""

    path: str
    upload_id: str
    size_bytes: int
    changed_at: float


class S3Files:
    """The objects of one bucket; a path is `bucket/key`."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self.client = bucket.client

    def upload(self, source: Path, destination: str, *, replace: bool = False) -> str:
        """Store a file, and return its SHA-256; raises ArtifactExists for a key with other content."""
        return FileUpload(self._bucket, self._key(destination), source, replace=replace).run()

    def download(self, source: str, destination: Path) -> str:
        """Write an object to a local path, and return the SHA-256 of its bytes."""
        return download_file(self._bucket, self._key(source), destination)

    def open(self, path: str, mode: str = "rb") -> BinaryIO:
        """Open an object for reading."""
        assert mode == "rb", mode
        key = self._key(path)
        return cast(BinaryIO, ObjectReader(self._bucket, key, head_object(self._bucket, key)))

    def cat_file(self, path: str) -> bytes:
        """Return the content of a small object."""
        with store_errors(self._bucket.name, path):
            content: bytes = self.client.get_object(Bucket=self._bucket.name, Key=self._key(path))[
                "Body"
            ].read()
        return content

    def pipe_file(self, path: str, content: bytes) -> None:
        """Write a small object, in place of one that exists."""
        with store_errors(self._bucket.name, path):
            self.client.put_object(
                Bucket=self._bucket.name, Key=self._key(path), Body=content, **self._bucket.encryption
            )

    def cp_file(self, source: str, destination: str) -> None:
        """Copy an object within the bucket, in parts if it is large."""
        with store_errors(self._bucket.name, source):
            self.client.copy(
                {"Bucket": self._bucket.name, "Key": self._key(source)},
                self._bucket.name,
                self._key(destination),
                ExtraArgs=self._bucket.encryption,
            )

    def size(self, path: str) -> int:
        """Return the size of an object in bytes."""
        return int(head_object(self._bucket, self._key(path))["ContentLength"])

    def exists(self, path: str) -> bool:
        """Return whether there is an object, or one below the path."""
        key = self._key(path)
        with store_errors(self._bucket.name, path):
            for prefix in (key, f"{key}/"):
                page = self.client.list_objects_v2(Bucket=self._bucket.name, Prefix=prefix, MaxKeys=1)
                found = [entry["Key"] for entry in page.get("Contents", [])]
                if found and (found[0] == key or found[0].startswith(f"{key}/")):
                    return True
        return False

    def ls(self, path: str, *, detail: bool = True, refresh: bool = True) -> list[dict[str, Any]]:
        """Return the objects and folders directly in a folder; raises FileNotFoundError if there are none."""
        prefix = f"{self._key(path)}/"
        found = []
        for page in self._list(prefix, Delimiter="/"):
            found += [
                {"name": self._path(entry["Prefix"].rstrip("/"))} for entry in page.get("CommonPrefixes", [])
            ]
            found += [self._entry(entry) for entry in page.get("Contents", []) if entry["Key"] != prefix]
        if not found:
            raise FileNotFoundError(f"nothing is stored under {path}")
        return found

    def find(self, path: str, *, detail: bool = True) -> dict[str, dict[str, Any]]:
        """Return all objects below a folder, by path."""
        prefix = self._key(path)
        entries = (
            self._entry(entry)
            for page in self._list(f"{prefix}/" if prefix else "")
            for entry in page.get("Contents", [])
        )
        return {entry["name"]: entry for entry in entries}

    def rm(self, path: str, *, recursive: bool = False) -> None:
        """Delete an object, and with `recursive` those below the path."""
        self.rm_file(path)
        if recursive:
            self._delete([self._key(name) for name in self.find(path)])

    def rm_file(self, path: str) -> None:
        """Delete an object."""
        with store_errors(self._bucket.name, path):
            self.client.delete_object(Bucket=self._bucket.name, Key=self._key(path))

    def check(self) -> None:
        """Raise what is wrong with the bucket, the credentials or the region."""
        check_bucket(self._bucket)

    def list_open_uploads(self, path: str) -> Iterator[OpenUpload]:
        """Yield the uploads below a folder that were not completed, with the time of their newest part."""
        prefix = self._key(path)
        with store_errors(self._bucket.name, path):
            pages = self.client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self._bucket.name, Prefix=f"{prefix}/" if prefix else ""
            )
            for page in pages:
                for upload in page.get("Uploads", []):
                    parts = list(list_parts(self._bucket, upload["Key"], upload["UploadId"]))
                    times = [upload["Initiated"], *(part["LastModified"] for part in parts)]
                    yield OpenUpload(
                        self._path(upload["Key"]),
                        upload["UploadId"],
                        sum(part["Size"] for part in parts),
                        max(map(datetime.timestamp, times)),
                    )

    def abort_upload(self, upload: OpenUpload) -> None:
        """Delete the parts of an upload that was not completed."""
        with store_errors(self._bucket.name, upload.path):
            self.client.abort_multipart_upload(
                Bucket=self._bucket.name, Key=self._key(upload.path), UploadId=upload.upload_id
            )

    def _list(self, prefix: str, **options: Any) -> Iterator[dict[str, Any]]:
        with store_errors(self._bucket.name, prefix):
            yield from self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket.name, Prefix=prefix, **options
            )

    def _delete(self, keys: list[str]) -> None:
        for start in range(0, len(keys), MAX_DELETED_KEYS):
            batch = keys[start : start + MAX_DELETED_KEYS]
            with store_errors(self._bucket.name):
                deleted = self.client.delete_objects(
                    Bucket=self._bucket.name,
                    Delete={"Objects": [{"Key": key} for key in batch], "Quiet": True},
                )
            if errors := deleted.get("Errors"):
                raise StoreUnreachable(f"{errors[0]['Key']} could not be deleted: {errors[0].get('Message')}")

    def _entry(self, entry: dict[str, Any]) -> dict[str, Any]:
        return {
            "name": self._path(entry["Key"]),
            "size": entry["Size"],
            "LastModified": entry["LastModified"],
        }

    def _key(self, path: str) -> str:
        return path.removeprefix(self._bucket.name).lstrip("/")

    def _path(self, key: str) -> str:
        return f"{self._bucket.name}/{key}"


def open_bucket(url: str, settings: Settings) -> S3Files:
    """Return the files of the bucket that a URL names; raises ImportError or ValueError."""
    parse_bucket(url)
    return S3Files(Bucket.from_settings(url, settings))
