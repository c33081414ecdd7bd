"""Values that may be secrets: no file and no report holds them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MASK = "***"

_NAME = re.compile(
    r"token|secret|passw|passphrase|(^|_)pass($|_)|_pwd|key(s?$|s?_)|cred|auth|cookie|private|bearer|signature|salt|dsn"
    r"|webhook",
    re.IGNORECASE,
)
_VALUE = re.compile(
    r"://[^/\s@]*@|^(hf_|sk-|gh[a-z]_|github_pat_|glpat-|xox[a-z]-|AKIA|eyJ)|-----BEGIN|secret|passw|token"
    r"|(?=[A-Za-z_+]*\d)(?=[\d_+]*[A-Za-z])[A-Za-z0-9_+]{32,}",
    re.IGNORECASE,
)
_OVERRIDE = re.compile(r"(.*\bpipeline\b[^=]*=).*", re.DOTALL)
_ENV = re.compile(r"\benv\b")


def may_be_secret(name: str, value: str) -> bool:
    """Whether an environment variable may be a secret, by its name (`HF_TOKEN`) or its value (`https://me:pw@host`)."""
    return bool(_NAME.search(name) or _VALUE.search(value))


def masked_env(tree: Any) -> Any:
    """Plain data of the configuration with the secrets of each mapping `env` replaced by the variables themselves.

    Read back, `${oc.env:HF_TOKEN}` is the variable of that name. A text that holds an interpolation stays.
    """
    if not isinstance(tree, Mapping):
        return tree
    return {
        key: {name: _masked(str(name), item) for name, item in value.items()}
        if key == "env" and isinstance(value, Mapping)
        else masked_env(value)
        for key, value in tree.items()
    }


def _masked(name: str, value: Any) -> Any:
    if not isinstance(value, str) or "${" in value.replace("\\${", "") or not may_be_secret(name, value):
        return value
    return f"${{oc.env:{name}}}" if re.fullmatch(r"\w+", name) else MASK


def masked_word(word: str) -> str:
    """A word of a command line without the values of a mapping `env` that it sets (`pipeline.nsys.env={A: b}`)."""
    override = _OVERRIDE.fullmatch(word)
    return f"{override[1]}{MASK}" if override and _ENV.search(word) else word
