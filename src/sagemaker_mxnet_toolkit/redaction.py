"""Redaction: find secrets by their names and mask them in output."""

import json
import re
from typing import Any, Dict, FrozenSet, Iterable, Iterator, Mapping, Set
from urllib.parse import quote, quote_plus

MASK = "***"
"""Replaces a secret."""

SHORTEST = 4
"""Minimum length of a value that is masked in free text. Shorter ones match by chance."""

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")

# Words in the name of a secret, also as part of another word (PGPASSWORD, authtoken).
_SECRET = re.compile(
    r".*(passw(or)?d|passphrase|passcode|secret|credential|privatekey|apikey|accesskey)s?"
    r"|.+token|auth|oauth|authorization|authentication|pwd|pass|creds?|private"
    r"|signature|bearer|jwt|cookie"
)

# "key" and "token" mean a secret, unless the name has a word that only models use (max_tokens).
_AMBIGUOUS = frozenset({"key", "keys", "token", "tokens"})
_MODEL_WORDS = frozenset(
    {"num", "n", "max", "min", "count", "counts", "len", "length", "size", "sort", "vocab"}
    | {"pad", "eos", "bos", "unk", "sep", "cls", "mask"}
)

# Working directories. Masking them would mask every path in the log.
_HARMLESS_NAMES = frozenset({"PWD", "OLDPWD"})

_HARMLESS_VALUES = frozenset({"true", "false", "none", "null"})

_URL_LOGIN = re.compile(r"(?<=://)[^/\s\"'<>]*@")
_URL_FIELD = re.compile(r"(?<=[?&;])([\w.%-]{1,64})=([^&;\s\"'<>]+)")

_ASSIGNMENT = re.compile(r"([\w.-]{1,64})([\\\"']*\s*[:=]\s*[\\\"']*)([^\\\"',}\s/]+)")

# A JSON Web Token, such as an authorization token of CodeArtifact: base64url of '{"'.
_WEB_TOKEN = re.compile(r"\beyJ[\w-]{16,}(?:\.[\w-]*)*")


def is_secret(name: str) -> bool:
    """Return whether the value of a variable with this name is a secret.

    Names are split into words at underscores, other punctuation and changes of case.

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
    """Return a copy with secrets masked, at any depth of JSON objects and lists."""
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

    Credentials in URLs and JSON Web Tokens are masked, too.

    Args:
        text: any text, such as the output of pip.
        secrets: values to mask, also as JSON, Python and URLs escape them; values of fewer than
            ``SHORTEST`` characters are not masked.
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

    Use it only for texts that may quote a user's input. It would also mask the ``x`` in a message
    like ``invalid token: x``.
    """
    return _ASSIGNMENT.sub(
        lambda match: match[1] + match[2] + (MASK if is_secret(match[1]) else match[3]), text
    )


def _spellings(secret: str) -> Set[str]:
    if len(secret) < SHORTEST:
        return set()
    forms = {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1]}
    if not (secret.isascii() and secret.isalnum()):
        raw = secret.encode("utf-8", "replace")
        forms |= {quote(raw), quote(raw, safe=""), quote_plus(raw)}
    # A private key has several lines, which are printed one by one.
    forms |= {line for line in secret.splitlines() if len(line) >= 8}
    return {form for form in forms if len(form) >= SHORTEST}


def secrets_in(mapping: Mapping[str, Any]) -> FrozenSet[str]:
    """Return the secret values of a mapping, at any depth, including passwords in URLs."""
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
