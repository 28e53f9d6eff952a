"""Redaction: which names mean that a value is secret, and how secrets are masked in output."""

import json
import re
from typing import Any, Dict, FrozenSet, Iterable, Iterator, Mapping, Set

MASK = "***"
"""Replaces a secret."""

SHORTEST = 4
"""Length from which a value is masked inside free text. Shorter ones occur everywhere by chance."""

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")

# Words in a name that mean a secret, however they are joined to others (PGPASSWORD, authtoken).
_SECRET = re.compile(
    r".*(passw(or)?d|passphrase|passcode|secret|credential|privatekey|apikey|accesskey)s?"
    r"|.+token|auth|oauth|authorization|authentication|pwd|pass|creds?|private"
    r"|signature|bearer|jwt|cookie"
)

# "key" and "token" mean a secret, unless the name counts or describes them, as a model does.
_AMBIGUOUS = frozenset({"key", "keys", "token", "tokens"})
_MODEL_WORDS = frozenset(
    {"num", "n", "max", "min", "count", "counts", "len", "length", "size", "sort", "vocab"}
    | {"pad", "eos", "bos", "unk", "sep", "cls", "mask"}
)

# Working directories: with them, every path in a log would be masked.
_HARMLESS_NAMES = frozenset({"PWD", "OLDPWD"})

_HARMLESS_VALUES = frozenset({"true", "false", "none", "null"})

_URL_LOGIN = re.compile(r"(?<=://)[^/\s\"'<>]*@")
_URL_FIELD = re.compile(r"(?<=[?&;])([\w.%-]{1,64})=([^&;\s\"'<>]+)")

_ASSIGNMENT = re.compile(r"([\w.-]{1,64})([\\\"']*\s*[:=]\s*[\\\"']*)([^\\\"',}\s/]+)")

# A JSON Web Token, which CodeArtifact's authorization tokens are too: base64url of '{"'.
_WEB_TOKEN = re.compile(r"\beyJ[\w-]{16,}(?:\.[\w-]*)*")


def is_secret(name: str) -> bool:
    """Tell whether a name means that its value is a secret.

    Names are split into words at underscores, other signs and changes of case.

    >>> [is_secret(name) for name in ("api_key", "dbPassword", "AWS_SECRET_ACCESS_KEY")]
    [True, True, True]
    >>> [is_secret(name) for name in ("monkey", "keyboard", "tokenizer", "max_tokens", "PWD")]
    [False, False, False, False, False]
    """
    if name in _HARMLESS_NAMES:
        return False
    words = {word.lower() for word in _WORD.findall(name)}
    if any(_SECRET.fullmatch(word) for word in words):
        return True
    return not words.isdisjoint(_AMBIGUOUS) and words.isdisjoint(_MODEL_WORDS)


def redact_mapping(mapping: Mapping[str, Any]) -> Dict[str, Any]:
    """Return a copy whose secrets are masked, at any depth of JSON objects and lists."""
    return {
        name: MASK if is_secret(name) and value not in (None, "") else _redact(value)
        for name, value in mapping.items()
    }


def _redact(value: Any) -> Any:
    if isinstance(value, Mapping):
        return redact_mapping(value)
    if isinstance(value, (list, tuple)):
        return [_redact(item) for item in value]
    return redact_text(value) if isinstance(value, str) else value


def redact_text(text: str, secrets: Iterable[str] = ()) -> str:
    """Mask secrets anywhere in a text.

    Args:
        text: any text, such as the output of pip.
        secrets: values to mask, also in the spellings of JSON, Python and URLs; those of fewer
            than ``SHORTEST`` characters are not masked.

    Returns:
        The text without these values, without credentials in URLs, and without tokens of
        CodeArtifact's form.
    """
    spellings = {form for secret in secrets for form in _spellings(secret)}
    # The longest first: one secret may contain another.
    for form in sorted(spellings, key=lambda form: (-len(form), form)):
        text = text.replace(form, MASK)
    text = _URL_LOGIN.sub(f"{MASK}@", text)
    text = _URL_FIELD.sub(_redact_field, text)
    return _WEB_TOKEN.sub(MASK, text)


def _redact_field(match: "re.Match[str]") -> str:
    return f"{match[1]}={MASK if is_secret(match[1]) else match[2]}"


def redact_assignments(text: str) -> str:
    """Mask values after the name of a secret and ``:`` or ``=``, as in JSON or in a shell.

    For texts that may quote a user's input, not for any text: ``invalid token: x`` in a program's
    own message would lose its point.
    """
    return _ASSIGNMENT.sub(
        lambda match: match[1] + match[2] + (MASK if is_secret(match[1]) else match[3]), text
    )


def _spellings(secret: str) -> Set[str]:
    if len(secret) < SHORTEST:
        return set()
    forms = {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1]}
    if not (secret.isascii() and secret.isalnum()):
        from urllib.parse import quote, quote_plus  # noqa: PLC0415  (rarely needed)

        raw = secret.encode("utf-8", "replace")
        forms |= {quote(raw), quote(raw, safe=""), quote_plus(raw)}
    # A private key is printed line by line.
    forms |= {line for line in secret.splitlines() if len(line) >= 8}
    return {form for form in forms if len(form) >= SHORTEST}


def secrets_in(mapping: Mapping[str, Any]) -> FrozenSet[str]:
    """Return the secret values of a mapping, at any depth, passwords inside URLs included."""
    return frozenset(
        found
        for name, value in mapping.items()
        for found in _secrets(value, is_secret(name))
        if len(found) >= SHORTEST and found.lower() not in _HARMLESS_VALUES
    )


def _secrets(value: Any, secret: bool) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _secrets(item, secret or is_secret(name))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _secrets(item, secret)
    elif secret and isinstance(value, (str, int, float)):
        yield str(value)
    elif isinstance(value, str):
        for login in _URL_LOGIN.findall(value):
            user, _, password = login[:-1].partition(":")
            yield password or user
