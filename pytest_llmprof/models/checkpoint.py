"""A checkpoint on disk: find and check its files before anything is loaded, digest its weights, and check what
transformers has loaded of them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

from pytest_llmprof.config.schema import ModelSettings
from pytest_llmprof.errors import ModelError
from pytest_llmprof.text.escape import quoted
from pytest_llmprof.text.numbers import count

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ADAPTER = "adapter_config.json"
_PLAIN = ("F64", "F32", "F16", "BF16")
"""safetensors' names of the dtypes that weights have where nothing is quantized."""
_WEIGHTS = ("weight", "bias", "_proj")
"""Ends of the names of tensors that are weights; buffers may be whole numbers."""
_LFS = b"version https://git-lfs"
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
WANTED = ("config.json", "tokenizer.json", "*.safetensors", INDEX)
"""Files that are fetched from the hub, unless a model wants others. No code is among them."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_Result = TypeVar("_Result")
_CHUNK = 1 << 20
_WHOLE = 512 << 20
"""Checkpoints up to this many bytes are hashed whole."""
_given_up: list[Future[Path]] = []
"""Downloads that nobody waits for any more; nothing else is downloaded until they have ended."""


@dataclass(frozen=True)
class Checkpoint:
    """The files of a checkpoint directory."""

    directory: Path
    config: dict[str, Any]
    weights: tuple[Path, ...]
    keys: frozenset[str]
    """Names of all tensors in `weights`."""
    tokenizer: Path | None


def resolve(
    path: str,
    revision: str | None,
    hub_timeout_s: float = ModelSettings.hub_timeout_s,
    wanted: tuple[str, ...] = WANTED,
    key: str = "model.path",
) -> Path:
    """Return the directory of *path* (a directory or a hub id), downloaded where needed.

    Only files that *wanted* names are downloaded: config, tokenizer and safetensors, never code. Raises `ModelError`,
    which names the path as the value of *key*.
    """
    directory = _local(path, revision, key)
    return _download(path, revision, hub_timeout_s, wanted, key) if directory is None else directory


def _local(path: str, revision: str | None, key: str) -> Path | None:
    """The directory *path*; None for a hub id. Raises `ModelError`."""
    directory = Path(os.path.expanduser(path))
    if os.path.isdir(directory):
        if revision is not None:
            raise ModelError(f"model.revision={revision} is for hub ids; {key}={path} is a directory")
        return directory
    if os.path.exists(directory) or not _HUB_ID.fullmatch(path):
        what = "is a file" if os.path.exists(directory) else "does not exist"
        raise ModelError(f"{key}={path} {what}; give a checkpoint's directory or a hub id (owner/name)")
    return None


def find_here(
    path: str, revision: str | None, wanted: tuple[str, ...] = WANTED, key: str = "model.path"
) -> Path | None:
    """As `resolve`, without the network: None for a hub id that is not in the cache."""
    directory = _local(path, revision, key)
    if directory is None:
        from huggingface_hub import errors, snapshot_download

        with suppress(errors.LocalEntryNotFoundError):
            return Path(snapshot_download(path, revision=revision, allow_patterns=list(wanted), local_files_only=True))
    return directory


def size_in_hub(repo: str, revision: str | None, timeout_s: float, wanted: tuple[str, ...] = WANTED) -> int:
    """Bytes of the files of *repo* that *wanted* names. Raises `ModelError` where the hub has no such model, or cannot
    be asked."""
    from huggingface_hub import HfApi, constants, errors

    at = f" at revision {revision}" if revision else ""
    if constants.is_offline_mode():
        raise ModelError(f"model.path={repo} is not in the cache{at}, and HF_HUB_OFFLINE is set")
    hub = HfApi(endpoint=constants.ENDPOINT)
    asked = _in_thread(lambda: hub.model_info(repo, revision=revision, files_metadata=True))
    if not wait([asked], timeout=timeout_s).done:  # requests' own limit is for each byte
        raise ModelError(f"the hub ({constants.ENDPOINT}) gave no answer for {repo} in {timeout_s:g} s")
    try:
        info = asked.result()
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        raise ModelError(f"the hub gave no model {repo}{at}: {_first_line(error)}") from error
    except (errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]  # the HTTP library's own base class
        raise ModelError(f"the hub ({constants.ENDPOINT}) cannot be asked for {repo}: {_first_line(error)}") from error
    files = info.siblings or []
    return sum(file.size or 0 for file in files if any(fnmatch(file.rfilename, pattern) for pattern in wanted))


def _download(repo: str, revision: str | None, timeout_s: float, wanted: tuple[str, ...], key: str) -> Path:
    from huggingface_hub import constants, errors, snapshot_download

    def snapshot(*, cached: bool) -> Path:
        # The time limit is below; of several requests at once none shall try again before it has passed.
        limits: dict[str, Any] = {"etag_timeout": 2 * timeout_s, "local_files_only": cached}
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(wanted), **limits))

    network = errors.HTTPError  # type: ignore[attr-defined]  # the HTTP library's own base class
    no_such = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError)
    here = f"{key}={repo} is no directory here, and"
    at = f" at revision {revision}" if revision else ""
    offline = constants.is_offline_mode() and not _given_up
    reason = "it was silent for an earlier model"
    try:
        if not _given_up:
            if (answer := _watched(lambda: snapshot(cached=False), _cache_of(repo), timeout_s)) is not None:
                return answer
            reason = f"it sent nothing for {timeout_s:g} s (model.hub_timeout_s)"
        with suppress(OSError):  # as where it refuses the connection, a copy in the cache will do
            return snapshot(cached=True)
    except no_such as error:
        raise ModelError(f"{here} the hub gave no such model{at}: {_first_line(error)}") from error
    except ValueError as error:  # a file too large for the packages that are installed, say
        raise ModelError(f"{here} its download fails: {_first_line(error)}") from error
    except (network, OSError) as error:
        reason = _first_line(error)
        if isinstance(error, OSError) and error.errno:  # of this machine
            text = f"{here} its copy from the hub cannot be kept in {constants.HF_HUB_CACHE}: {error.strerror}"
            raise ModelError(text) from error
    if offline:
        raise ModelError(f"{here} HF_HUB_OFFLINE is set, so only the cache is read, which has no whole copy of it{at}")
    raise ModelError(f"{here} the hub ({constants.ENDPOINT}) is not reachable for it{at}: {reason}")


def _watched(work: Callable[[], Path], folder: Path, timeout_s: float) -> Path | None:
    """The result of *work*, done in a thread; None where nothing in *folder* has grown for *timeout_s*.

    huggingface_hub has no way to stop its threads, and this process ends only after them. So they are told that they
    are offline, at which they give up; until then no other download begins. At Ctrl-C, too: data that still arrives
    would keep them, so their connections are closed.
    """
    from huggingface_hub import close_session, constants

    # It writes so many bytes at a time: 10 MiB of a slow hub would look like silence.
    constants.DOWNLOAD_CHUNK_SIZE = min(constants.DOWNLOAD_CHUNK_SIZE, _CHUNK)
    done = _in_thread(work)
    size, since = -1, time.monotonic()
    try:
        while not wait([done], timeout=min(timeout_s, 1.0)).done:
            if (now := _bytes_in(folder)) != size:
                size, since = now, time.monotonic()
            elif time.monotonic() - since > timeout_s:
                _give_up(done)
                return None
    except KeyboardInterrupt:
        _give_up(done)
        close_session()
        raise
    return done.result()


def _give_up(download: Future[Path]) -> None:
    """Be offline until *download* has ended."""
    from huggingface_hub import constants

    _given_up.append(download)
    offline, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True

    def ended(_: Future[Path]) -> None:
        _given_up.remove(download)
        constants.HF_HUB_OFFLINE = offline

    download.add_done_callback(ended)


def _in_thread(work: Callable[[], _Result]) -> Future[_Result]:
    done: Future[_Result] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again by the one who waits
            done.set_exception(error)

    # A daemon: a thread that waits for the network would keep this process from ending.
    threading.Thread(target=run, name="hub", daemon=True).start()
    return done


def _cache_of(repo: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repo, repo_type="model"))


def _bytes_in(folder: Path) -> int:
    total = 0
    for directory, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(directory, name)).st_size
    return total


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def open_checkpoint(directory: Path) -> Checkpoint:
    """Check that *directory* holds a config and readable safetensors; list its files. Raises `ModelError`."""
    config = read_json(directory / "config.json")
    weights = _weights(directory)
    if (directory / ADAPTER).is_file():
        raise ModelError(
            f"{directory} holds a whole checkpoint and an adapter ({ADAPTER}), for whose sake transformers reads other "
            "weights: keep them in two directories, and name one of them"
        )
    dtypes = {key: dtype for file in weights for key, dtype in tensor_dtypes(file).items()}
    if not config.get("quantization_config"):
        check_dtypes(directory, dtypes)
    keys = frozenset(dtypes)
    tokenizer = directory / "tokenizer.json"
    return Checkpoint(directory, config, weights, keys, tokenizer if tokenizer.is_file() else None)


def total_bytes(files: tuple[Path, ...]) -> int:
    """The bytes of all *files*."""
    return sum(file.stat().st_size for file in files)


def digest(files: tuple[Path, ...], beside: tuple[Path, ...] = (), whole: int = _WHOLE) -> str:
    """Return a digest of the names and contents of the weights' *files* and of those *beside* them.

    Up to *whole* bytes of weights it is "sha256:..." of everything. For bigger ones it is "sha256-sampled:...", with
    each of *files* by its name, size, first MiB (with the safetensors header) and last MiB.
    """
    sampled = total_bytes(files) > whole
    digest = hashlib.sha256()
    for file in (*files, *beside):
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as stream:
            if sampled and size > 2 * _CHUNK and file in files:
                digest.update(stream.read(_CHUNK))
                stream.seek(size - _CHUNK)
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    return f"{'sha256-sampled' if sampled else 'sha256'}:{digest.hexdigest()}"


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in *file*, one of a checkpoint's. Raises `ModelError`."""
    if not file.is_file():
        raise ModelError(f"{file} is missing; a checkpoint directory holds config.json and *.safetensors")
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        check_fetched(file)
        raise ModelError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{file} holds no JSON object")
    return value


def _weights(directory: Path) -> tuple[Path, ...]:
    if (directory / SINGLE).is_file():  # transformers reads it where there is an index, too
        return (directory / SINGLE,)
    index = directory / INDEX
    if index.is_file():
        content = read_json(index)
        shards = content.get("weight_map")
        if not isinstance(shards, dict) or not shards or not isinstance(content.get("metadata"), dict):
            raise ModelError(f"{index} lacks its weight_map or metadata")
        names = sorted(set(map(str, shards.values())))
        if strange := next((name for name in names if Path(name).name != name), None):
            raise ModelError(f"{index} names {quoted(strange)}, which is no file of this directory")
        files = tuple(directory / name for name in names)
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            more = f" and {len(missing) - 1} more" if missing[1:] else ""
            raise ModelError(f"{directory}: {INDEX} names files that are missing: {missing[0]}{more}")
        return files
    if any(next(directory.glob(pattern), None) for pattern in _PICKLED):
        raise ModelError(f"{directory} holds pickled weights only, which can run code; only *.safetensors are read")
    others = sorted(file.name for file in directory.glob("*.safetensors") if file.is_file())
    found = f" (found {others[0]} without its {INDEX})" if others else ""
    raise ModelError(f"{directory} has no weights: expected {SINGLE} or {INDEX}{found}")


def tensor_dtypes(file: Path) -> dict[str, str]:
    """The dtypes of a file's tensors by name, from its header; a truncated file is refused."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as opened:
            dtypes = {key: str(opened.get_slice(key).get_dtype()) for key in opened.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        check_fetched(file)
        raise ModelError(f"{file} is not a whole safetensors file: {error}") from error
    if not dtypes:
        raise ModelError(f"{file} holds no tensor")
    return dtypes


def check_dtypes(directory: Path, dtypes: Mapping[str, str]) -> None:
    """Raise `ModelError` for weights that are no plain numbers: transformers alone would take them as they are."""
    strange = [f"{key} {dtype}" for key, dtype in dtypes.items() if key.endswith(_WEIGHTS) and dtype not in _PLAIN]
    if strange:
        more = f" and {len(strange) - 1} more" if strange[1:] else ""
        raise ModelError(f"{directory}: nothing says how its weights are quantized, and they are not all of "
                         f"{', '.join(_PLAIN)}: {strange[0]}{more}; use the plain checkpoint")  # fmt: skip


def check_fetched(file: Path) -> None:
    """Raise `ModelError` where *file* cannot be read, or is what Git LFS keeps in a file's place."""
    try:
        with file.open("rb") as stream:
            start = stream.read(len(_LFS))
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}") from error
    if start == _LFS:
        raise ModelError(f"{file} is a pointer of Git LFS, not the file itself: run git lfs pull there")


def check_text(file: Path) -> None:
    """Raise `ModelError` where *file*, one of a checkpoint's, is no text, or no JSON object though its name says so."""
    if file.suffix == ".json":
        read_json(file)
        return
    try:
        file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read as text: {error}") from error


def check_tensors(directory: Path, found: Mapping[str, Any], unexpected: Collection[str] = ()) -> None:
    """Raise `ModelError` where tensors are missing, *unexpected* or of another shape; *found* is transformers' report
    of what it has loaded from *directory*."""
    shapes = [f"{name} {list(has)} instead of {list(wants)}" for name, has, wants in found["mismatched_keys"]]
    for problem, tensors in (
        ("lacks {} that config.json asks for", found["missing_keys"]),
        ("has {} that config.json has no place for", unexpected),
        ("has {} of another shape than config.json gives", shapes),
    ):
        if tensors:
            what = problem.format(count(len(tensors), "tensor"))
            more = f" and {len(tensors) - 3} more" if len(tensors) > 3 else ""
            raise ModelError(f"{directory}: the checkpoint {what}: {', '.join(sorted(tensors)[:3])}{more}")


@contextmanager
def silenced() -> Iterator[None]:
    """Keep transformers' progress bar and its report of keys off the terminal: `check_tensors` reports keys."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
