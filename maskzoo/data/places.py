"""Where shards lie: in a folder of this machine, or wherever `fsspec` reaches by a URL, such as s3:// or gs://.

Nothing is held open between two calls, and each process opens its own connections, so that any number may read.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

import attrs

from maskzoo.data.folder import SourceGoneError, check_folder, check_still_there, expanded
from maskzoo.data.library import library
from maskzoo.errors import DataError, MaskZooError, RecipeError

T = TypeVar("T")
# The package that a scheme needs beside fsspec, "" for none. Others of fsspec's run programs, look into archives, or
# read what a file says that they shall read.
SCHEMES: Mapping[str, str] = {
    **dict.fromkeys(("file", "local", "memory", "ftp"), ""),
    **dict.fromkeys(("http", "https"), "aiohttp"),
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("abfs", "abfss", "az"), "adlfs"),
    **dict.fromkeys(("sftp", "ssh"), "paramiko"),
    "hf": "huggingface_hub",
    "hdfs": "pyarrow",
    "oci": "ocifs",
    "oss": "ossfs",
    "webdav": "webdav4",
}
STAMPS = ("ETag", "etag", "md5Hash", "crc32c", "checksum", "generation", "LastModified", "last_modified", "mtime")
CREATED = ("created", "updated")  # of file systems that say nothing better
TRIES, PAUSE = (
    3,
    0.5,
)  # of a read that fails on the way, and seconds before the second; each further pause is 4 times it
READ_AHEAD = 2**22  # bytes that are fetched at once where a shard is gone through
SECRET = re.compile(r"(?i)([\w-]*(?:signature|sig|token|secret|password|passwd|credential|key)[\w-]*=)[^&\s'\"]+")
USER = re.compile(r"(?<=://)[^/@\s]+@")


class Place(Protocol):
    """A folder of shards. Whatever cannot be had raises DataError, which names it."""

    @property
    def root(self) -> str:
        """How it was named."""
        ...

    def found(self, pattern: str) -> list[str]:
        """The files that a shell's pattern means, in order."""
        ...

    def at(self, name: str) -> str:
        """The whole name of a file below the root."""
        ...

    def is_file(self, file: str) -> bool:
        """Whether there is such a file."""
        ...

    def state(self, file: str) -> list[Any] | None:
        """What changes where a file does, beginning with its bytes; None where nothing tells, so it may not be kept."""
        ...

    def size(self, file: str) -> int:
        """How many bytes a file has."""
        ...

    def opened(self, file: str) -> IO[bytes]:
        """A file, to be gone through from the beginning."""
        ...

    def read(self, file: str, start: int, size: int) -> bytes:
        """So many bytes of a file, or fewer where it ends before. SourceGoneError where the whole place is gone."""
        ...


def place_of(root: str) -> Place:
    """The place that `data.root` names, checked. Raises RecipeError, DataError where there can be none."""
    if "://" not in root and "::" not in root:
        folder = expanded(root)
        check_folder(folder)
        return Folder(str(folder))
    check_url(root)
    place = Remote(root.rstrip("/"))
    place.check()
    return place


def check_url(root: str) -> None:
    """Raise RecipeError, for the key `root`, for a URL that is of no known scheme, or that holds a secret."""
    scheme = root.partition("://")[0].lower()
    shown = harmless(root)
    if "::" in root or scheme not in SCHEMES:
        raise RecipeError(
            f"'{shown}' is neither a folder nor a URL that shards are read from; these begin with "
            f"{', '.join(f'{name}://' for name in SCHEMES)}",
            key="root",
        )
    if re.match(r"[^/@]*:[^/@]*@", root.partition("://")[2]) or ("?" in root and scheme in ("http", "https")):
        raise RecipeError(
            f"'{shown}' holds a password or a signature, which has no place in a recipe; give it through the "
            "environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, "
            "FSSPEC_HTTPS_CLIENT_KWARGS, or whatever the file system reads",
            key="root",
        )


def harmless(words: object) -> str:
    """A URL, or what a library says, without passwords, tokens and signatures."""
    return SECRET.sub(r"\1***", USER.sub("***@", " ".join(str(words).split())))


@attrs.frozen
class Folder:
    """Shards in a folder of this machine."""

    root: str

    def found(self, pattern: str) -> list[str]:
        """The files that a shell's pattern means, in order."""
        return [str(file) for file in sorted(Path(self.root).glob(pattern))]

    def at(self, name: str) -> str:
        """The whole name of a file below the root."""
        return str(Path(self.root) / name)

    def is_file(self, file: str) -> bool:
        """Whether there is such a file; False also for a name that no file can have."""
        return os.path.isfile(file)

    def state(self, file: str) -> list[Any]:
        """Size and time of change, and the file's real name."""
        stated = os.stat(file)
        return [stated.st_size, str(Path(file).resolve()), stated.st_mtime_ns]

    def size(self, file: str) -> int:
        """How many bytes a file has."""
        return os.stat(file).st_size

    def opened(self, file: str) -> IO[bytes]:
        """The open file."""
        return open(file, "rb")

    def read(self, file: str, start: int, size: int) -> bytes:
        """So many bytes of a file."""
        try:
            with open(file, "rb") as shard:
                shard.seek(start)
                return shard.read(size)
        except OSError as error:
            check_still_there(self.root)
            raise DataError(f"shard '{file}' cannot be read ({error.strerror}); bring it back") from error


@attrs.frozen
class Remote:
    """Shards that fsspec reaches by a URL. A file is named by its whole URL."""

    root: str

    @property
    def scheme(self) -> str:
        """The URL's first part: s3, gs, https, memory, ..."""
        return self.root.partition("://")[0].lower()

    def _system(self) -> Any:
        """The file system of this process: fsspec keeps one for each process and anew after a fork."""
        fsspec = library("fsspec", "maskzoo[data]", "root")
        try:
            system, _ = fsspec.core.url_to_fs(self.root)
        except (ImportError, ValueError) as error:
            package = SCHEMES[self.scheme]
            how = f"needs the package {package}: pip install {package}" if package else f"cannot be read ({error})"
            raise RecipeError(f"'{harmless(self.root)}' {how}", key="root") from error
        except Exception as error:
            raise self._unreachable(error) from error
        return system

    def check(self) -> None:
        """Raise where the place cannot be reached or is none; of http alone nothing is known but its files."""
        if self.scheme in ("http", "https"):
            return
        kind = self._kind(self.root)
        if kind != "directory":
            raise DataError(self._nothing() if kind is None else f"'{self.root}' is a file; name the folder it is in")

    def found(self, pattern: str) -> list[str]:
        """The files that a shell's pattern means, in order."""
        return sorted(self._asked(lambda fs: self._globbed(fs, pattern)))

    def at(self, name: str) -> str:
        """The whole URL of a file below the root."""
        return f"{self.root}/{name}"

    def is_file(self, file: str) -> bool:
        """Whether there is such a file."""
        return self._kind(file) == "file"

    def _kind(self, url: str) -> str | None:
        """Whether there is a file or a directory, None for neither; `exists` of fsspec takes all errors for that."""

        def question(system: Any) -> str | None:
            try:
                return str(system.info(self._path(system, url))["type"])
            except FileNotFoundError:
                return None

        return self._asked(question)

    def state(self, file: str) -> list[Any] | None:
        """Size, URL, and what else the file system says that changes with the content."""
        info = self._asked(lambda fs: fs.info(self._path(fs, file)), file)
        stamps = [str(info[name]) for name in STAMPS if info.get(name)]
        stamps = stamps or [str(info[name]) for name in CREATED if info.get(name)]
        return [int(info["size"]), file, *stamps] if stamps and info.get("size") is not None else None

    def size(self, file: str) -> int:
        """How many bytes a file has."""
        size = self._asked(lambda fs: fs.info(self._path(fs, file)).get("size"), file)
        if size is None:
            raise DataError(f"the server does not say how large '{file}' is, so no part of it can be asked for")
        return int(size)

    def opened(self, file: str) -> IO[bytes]:
        """A file that is fetched piece by piece as it is read."""
        remote: IO[bytes] = self._asked(
            lambda fs: fs.open(self._path(fs, file), "rb", block_size=READ_AHEAD, cache_type="readahead"), file
        )
        return remote

    def read(self, file: str, start: int, size: int) -> bytes:
        """So many bytes of a file, of which no others are fetched."""
        content: bytes = self._asked(lambda fs: fs.cat_file(self._path(fs, file), start=start, end=start + size), file)
        return content

    def _globbed(self, system: Any, pattern: str) -> list[str]:
        base = self._path(system, self.root)
        names = (str(name) for name in system.glob(self._path(system, self.at(pattern))))
        return [self.at(name.removeprefix(base).lstrip("/")) if name.startswith(base) else name for name in names]

    def _path(self, system: Any, url: str) -> str:
        return str(system._strip_protocol(url))

    def _asked(self, question: Callable[[Any], T], file: str = "") -> T:
        """What the file system answers, asked again where that fails on the way."""
        for number in range(TRIES):
            try:
                return question(self._system())
            except MaskZooError:
                raise
            except FileNotFoundError as error:
                if not file:
                    raise DataError(
                        f"'{self.root}' does not exist; `data.root` must name a folder of shards"
                    ) from error
                raise DataError(f"the shard '{file}' is missing; bring it back") from error
            except PermissionError as error:
                raise DataError(
                    f"'{file or self.root}' may not be read ({harmless(error)}); give the credentials through the "
                    "environment, as the file system of its scheme reads them"
                ) from error
            except Exception as error:  # whatever networks and servers bring
                if number == TRIES - 1:
                    raise self._unreachable(error) from error
                time.sleep(PAUSE * 4**number)
        raise AssertionError("unreachable")

    def _nothing(self) -> str:
        return f"'{self.root}' does not exist; `data.root` must name a folder of shards"

    def _unreachable(self, error: Exception) -> SourceGoneError:
        words = harmless(error) or type(error).__name__
        return SourceGoneError(
            f"'{harmless(self.root)}' cannot be reached ({words}); is there a network, and are the credentials in the "
            "environment? A run that began goes on with --resume"
        )
