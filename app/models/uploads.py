"""Uploaded models: the files of a form, or of a tar archive, verified and registered.

What is registered are the files that a loader may see: configs, tokenizers, chat templates and safetensors.
Others, such as an optimizer's state, are left out, and a file that is unsafe refuses the upload.
"""

import hashlib
import re
import tarfile
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import Any

from sqlmodel import Session

from app.datasets.form import UploadedFile
from app.datasets.schemas import MAX_NAME_LENGTH
from app.datasets.upload import FormUpload, upload_name
from app.http.documents.multipart import multipart_form
from app.http.errors import UnprocessableContent, field_error
from app.models import references
from app.storage.database import read_session, transaction
from app.storage.opening import get_store
from app.storage.remote.protocol import PublishedArtifact
from app.tables import Model, ModelKind
from app.tables.base import new_id
from trainers.configs.base import PRINTABLE_PATTERN
from trainers.configs.references import RegistryModel
from trainers.modeling.model_files import (
    MAX_FILES,
    BaseModelNotFound,
    ModelRefused,
    ModelRole,
    is_adapter,
    open_model,
    read_adapter_base,
)
from trainers.rendering.template_proof import prove_folder
from trainers.rendering.template_renderer import ChatTemplateError
from trainers.runtime.error_codes import ErrorCode

FORM = multipart_form(
    ["file"],
    {
        "file": {
            "type": "array",
            "items": {"type": "string", "format": "binary"},
            "minItems": 1,
            "description": "The files of the model's folder, or one tar archive of them.",
        },
        "name": {
            "type": "string",
            "maxLength": MAX_NAME_LENGTH,
            "pattern": PRINTABLE_PATTERN,
            "description": "Name of the model, by default that of the last file.",
        },
        "base": {
            "type": "string",
            "description": "Base of an adapter, in place of the one that its "
            "`adapter_config.json` names: a hub id, a folder or an id of the registry.",
        },
    },
)
# Shards of weights, configs, a tokenizer and chat templates.
MAX_PARTS = 1000
TAR_SUFFIX = ".tar"
FILE_NAME = re.compile(r"\w[\w.-]{0,254}", re.ASCII)
MAX_DEPTH = 2
MAX_READ_BYTES = 1 << 20
# tarfile reads the header of a member into memory, with the size that the header states, and searches it for
# numbers in a time that grows with the square of their digits, while no other thread can run.
MAX_HEADER_BYTES = 64 << 10
LONG_NUMBER = re.compile(rb"\d{64}")


class UploadRefused(UnprocessableContent):
    """A file of the model is missing, unsafe or damaged."""

    code = ErrorCode.model_refused


def import_upload(upload: FormUpload, folder: Path) -> Model:
    """Verify and register the files of a form; no session is open while they are read and copied.

    Raises:
        UploadRefused: A file is missing, unsafe or damaged.
        UnprocessableContent: The base or the name is invalid.
    """
    name, unpacked = upload_name(upload), folder / "model"
    unpacked.mkdir()
    for file in upload.files:
        if file.name.endswith(TAR_SUFFIX):
            _unpack(file, unpacked)
        else:
            _place(file, unpacked)
    role = ModelRole.adapter if is_adapter(unpacked) else ModelRole.base
    named = upload.fields.get("base", "").strip()
    try:
        verified = open_model(unpacked, role, [folder.resolve()], folder / "views")
        if role is ModelRole.adapter:
            named = named or read_adapter_base(unpacked) or ""
        prove_folder(verified)
    except (ModelRefused, BaseModelNotFound, ChatTemplateError) as error:
        # The path of the upload on this host means nothing to the client.
        message = error.message.replace(str(unpacked), "of the upload")
        raise UploadRefused(message, hint=error.hint) from error
    model_id = new_id("model")
    with read_session() as session:
        _resolve_base(session, role, named, model_id)
    published = get_store().publish_folder(verified, f"models/{model_id}")
    try:
        with transaction() as session:
            # Again and under a lock: the base may have been deleted while the files were copied.
            base = _resolve_base(session, role, named, model_id)
            model = _new_model(model_id, name, role, base, published)
            model.template_sha256 = _hash_template(verified)
            session.add(model)
    except BaseException:
        get_store().delete(published.key)
        raise
    return model


def _resolve_base(session: Session, role: ModelRole, named: str, model_id: str) -> str:
    """Return the location of an adapter's base; whole weights are their own base."""
    if role is ModelRole.base:
        if named:
            raise field_error("base", "These are whole weights, which need no base.")
        return model_id
    if not named:
        raise field_error("base", "adapter_config.json names no base: send it as the form field `base`.")
    location = references.resolve_model(session, named, "base")
    if isinstance(location, RegistryModel) and session.get_one(Model, location.id).kind is ModelKind.adapter:
        raise field_error("base", f"{location} is an adapter itself: name its merged form.")
    return str(location)


def _new_model(model_id: str, name: str, role: ModelRole, base: str, published: PublishedArtifact) -> Model:
    return Model(
        id=model_id,
        name=name,
        kind=ModelKind.adapter if role is ModelRole.adapter else ModelKind.base,
        base=base,
        artifact=published.key,
        sha256=published.sha256,
        size_bytes=published.size_bytes,
    )


def _hash_template(folder: Path) -> str | None:
    """Return the hash of the folder's own chat template, as the programs compute it."""
    template = folder / "chat_template.jinja"
    if not template.is_file():
        return None
    return hashlib.sha256(template.read_text(encoding="utf-8").encode()).hexdigest()


def _place(file: UploadedFile, folder: Path) -> None:
    """Move a file of the form to its name; some clients send a path, of which the last part counts."""
    file.path.rename(_target(folder, (re.split(r"[\\/]", file.name)[-1],)))


def _target(folder: Path, parts: tuple[str, ...]) -> Path:
    """Return the path of a new file; raises UploadRefused for an odd or a second name."""
    name = "/".join(parts)
    if not 0 < len(parts) <= MAX_DEPTH or not all(FILE_NAME.fullmatch(part) for part in parts):
        raise _refused(f"the name of its file {name[:100]!r} is not one of a model's files")
    target = folder.joinpath(*parts)
    if target.exists():
        raise _refused(f"it contains the file {name!r} twice")
    if target.parent.is_file():
        raise _refused(f"its file {name[:100]!r} is in a folder whose name another file has")
    target.parent.mkdir(exist_ok=True)
    return target


def _unpack(file: UploadedFile, folder: Path) -> None:
    """Write the regular files of an archive, without the folder that all of them are in, and hidden files."""
    try:
        reads = _BoundedReads(file.path)
        with closing(reads), tarfile.open(fileobj=reads, mode="r:") as archive:
            members = _list_members(archive)
            reads.in_headers = False
            prefix = _common_folder(members)
            for member in members:
                parts = PurePosixPath(member.name).parts[prefix:]
                content = archive.extractfile(member)
                assert content is not None, "the member is a regular file"
                with _target(folder, parts).open("xb") as target:
                    while chunk := content.read(MAX_READ_BYTES):
                        target.write(chunk)
                    if target.tell() != member.size:
                        raise _refused("the archive ends early")
    except RecursionError as error:
        raise _refused("it has too many headers before a file") from error
    except (tarfile.TarError, OverflowError, ValueError, EOFError) as error:
        raise _refused(f"it is not a tar archive that can be read: {error}") from error


def _list_members(archive: tarfile.TarFile) -> list[tarfile.TarInfo]:
    members = []
    for number, member in enumerate(archive):
        if number >= MAX_FILES:
            raise _refused(f"it has more than {MAX_FILES:,} files")
        if member.isdir():
            continue
        # A sparse file of a few bytes would be unpacked to any size.
        if not member.isreg() or member.issparse():
            raise _refused(f"its member {member.name[:100]!r} is not a regular file")
        if not _is_hidden(member.name):
            members.append(member)
    return members


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") and part != ".." for part in PurePosixPath(name).parts)


def _common_folder(members: list[tarfile.TarInfo]) -> int:
    """Return 1 if all files are in one folder, as in an archive that this service sends, else 0."""
    parts = [PurePosixPath(member.name).parts for member in members]
    tops = {part[0] for part in parts if part}
    return 1 if len(tops) == 1 and all(len(part) > 1 for part in parts) else 0


class _BoundedReads:
    """The file of an archive: bounds what is read at once, and more so while its headers are read."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self.in_headers = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def seek(self, position: int) -> int:
        """Seek as a file does; raises ReadError before the start, where a negative size leads."""
        if position < 0:
            raise tarfile.ReadError("a member has a negative size")
        return self._file.seek(position)

    def read(self, size: int = -1) -> bytes:
        """Read as a file does; raises ReadError for more than the bound."""
        allowed = MAX_HEADER_BYTES if self.in_headers else MAX_READ_BYTES
        if not 0 <= size <= allowed:
            raise tarfile.ReadError(f"a header has more than {MAX_HEADER_BYTES:,} bytes")
        content = self._file.read(size)
        if self.in_headers and size > tarfile.BLOCKSIZE and LONG_NUMBER.search(content):
            raise tarfile.ReadError("a header has a number with more digits than any size needs")
        return content


def _refused(reason: str) -> UploadRefused:
    return UploadRefused(
        f"The upload cannot be used as a model: {reason}.",
        hint="Send the files of a model's folder as form fields `file`, or as one uncompressed .tar archive.",
    )
