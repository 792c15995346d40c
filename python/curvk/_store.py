"""Files that are whole at any moment, and trees of arrays in them.

A tree is one .npz of plain arrays; the one named "meta" is JSON and says where the others belong.
"""

from __future__ import annotations

import io
import json
import os
import secrets
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from struct import error as StructError
from tokenize import TokenError
from typing import Any

import numpy as np


def write(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Writes a tree of dicts, lists, numbers, strings and arrays, or leaves what was at `path`."""
    arrays: dict[str, Any] = {}

    def encode(leaf: Any) -> Any:
        if isinstance(leaf, np.ndarray):
            name = f"array{len(arrays)}"
            arrays[name] = leaf
            return {"array": name}
        if isinstance(leaf, np.generic):
            return leaf.item()
        raise TypeError(
            f"save: a state of type {type(leaf).__name__} cannot be saved; param groups may hold numbers and strings"
        )

    meta = np.frombuffer(json.dumps(state, default=encode).encode(), np.uint8)

    def save(unfinished: Path) -> None:
        with open(unfinished, "xb") as file:
            np.savez(file, **arrays, meta=meta)

    replace(path, save)


def replace(path: str | os.PathLike[str], save: Callable[[Path], object]) -> None:
    """Calls save(a new name beside `path`) and gives that file the name, or leaves what was there.

    A process that is killed leaves the old file or the new one, and at most `.NAME.HEX.tmp` beside it; no later call
    minds that.
    """
    target = Path(path)
    unfinished = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        save(unfinished)
        with open(unfinished, "rb+") as file:
            os.fsync(file.fileno())  # else a power cut can leave the new name on an empty file
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)
    _keep_name(target.parent)


def _keep_name(folder: Path) -> None:
    """Has the folder's names written down, where the system does that: else a power cut can bring back the old file."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders; and one may be writable but not readable
        return
    try:
        os.fsync(descriptor)
    except OSError:  # some file systems refuse it; the file is in its place all the same
        pass
    finally:
        os.close(descriptor)


def read(path: str | os.PathLike[str], writer: str) -> Any:
    """What `write` wrote for `writer`; ValueError where the file is anything else, truncated or damaged."""
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:  # reads members whole, so that their checksums come before their use
                members = {name: archive.read(name) for name in archive.namelist()}

            def array(name: str) -> Any:
                found = np.lib.format.read_array(io.BytesIO(members[f"{name}.npy"]), allow_pickle=False)
                if found.dtype.kind == "U":
                    found.tolist()  # raises where an element is no text, which NumPy finds out only when it is read
                return found

            def decode(node: dict[str, Any]) -> Any:
                return array(node["array"]) if node.keys() == {"array"} else node

            return json.loads(array("meta").tobytes(), object_hook=decode)
        except _DAMAGE as error:
            text = f"load: {os.fspath(path)!r} is not a whole file that {writer} saved: {type(error).__name__}: {error}"
            raise ValueError(text) from error


def equal(found: Any, value: Any) -> bool:
    """Whether what a file or a state dict has is this value; False for arrays, which compare element by element."""
    try:
        return bool(found == value)
    except ValueError:
        return False


# What zipfile, zlib, NumPy and json raise on damaged or foreign bytes.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
    MemoryError,
    RecursionError,
    AttributeError,
    SyntaxError,
    TokenError,
    StructError,
    SystemError,
)
