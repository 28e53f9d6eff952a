"""Package indexes, and how their credentials reach pip without being seen.

pip hands its index URLs on to the processes that build source distributions, as arguments
(``pip/_internal/build_env.py``, pip 23 to 25), where ``ps`` shows them to everybody. So credentials
leave the URLs and go into a netrc file of mode 0600, which pip reads for every host that it asks
(pip documentation, "Authentication"; ``NETRC`` is a variable of its HTTP library, requests).
"""

import os
import re
import sys
from typing import Dict, Mapping, NamedTuple, Optional
from urllib.parse import unquote

from sagemaker_mxnet_toolkit.errors import RequirementsError

REPOSITORY_VARIABLE = "CA_REPOSITORY_ARN"
"""Variable of sagemaker-training 5.1.4: the CodeArtifact repository to install from."""

_CREDENTIALS = re.compile(r"(https?://)([^\s/@?#]+)@([^\s/?#:\[\]]+)")


class _Login(NamedTuple):
    user: str
    password: str  # empty where a token is the user's name


class Credentials:
    """Logins taken out of URLs, one for each host, as a netrc file has them."""

    def __init__(self) -> None:
        self._logins: Dict[str, _Login] = {}

    def take_from(self, text: str) -> str:
        """Return a text without the credentials in its URLs, which are remembered.

        What a netrc file cannot say stays in the text: a second login for the same host, and,
        before CPython 3.11, an empty password or one with spaces.
        """

        def take(match: "re.Match[str]") -> str:
            user, _, password = match[2].partition(":")
            login = _Login(unquote(user), unquote(password))
            sayable = _token(login.user) is not None and _token(login.password) is not None
            if not sayable or self._logins.setdefault(match[3], login) != login:
                return match[0]
            return match[1] + match[3]

        return _CREDENTIALS.sub(take, text)

    def netrc(self) -> str:
        """Return the text of a netrc file."""
        return "".join(
            f"machine {name} login {_token(user)} password {_token(password)}\n"
            for host, (user, password) in self._logins.items()
            # requests asks for the name as the URL has it; from 2.32.4 on, in lower case.
            for name in sorted({host, host.lower()})
        )


def _token(text: str) -> Optional[str]:
    """Return a word of a netrc file, or ``None`` where CPython's ``netrc`` cannot read it.

    Only from 3.11 on does it know quoted words (documentation of ``netrc``, changed in 3.11).
    """
    if re.fullmatch(r"[^\s\"\\#][^\s\"\\]*", text):
        return text
    if sys.version_info < (3, 11):
        return None
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def existing_netrc(environ: Mapping[str, str]) -> str:
    """Return the user's own netrc file, or an empty text."""
    home = os.path.expanduser("~")
    for path in (environ.get("NETRC"), os.path.join(home, ".netrc"), os.path.join(home, "_netrc")):
        if path and os.path.isfile(path):
            try:
                with open(path, encoding="utf-8") as file:
                    return file.read().rstrip("\n") + "\n"
            except (OSError, ValueError):
                return ""
    return ""


def codeartifact_url(arn: str) -> str:
    """Ask AWS for the index URL of a CodeArtifact repository, with a token in it.

    Args:
        arn: value of ``CA_REPOSITORY_ARN``, which is also in ``os.environ``.

    Raises:
        RequirementsError: when the ARN is none, or AWS does not answer or refuses.
    """
    # Imports boto3, and makes directories below SAGEMAKER_BASE_DIR.
    from sagemaker_training import modules  # noqa: PLC0415

    try:
        return str(modules._get_codeartifact_index())
    except Exception as error:  # it raises nothing narrower
        cause = error.__context__ or error
        raise RequirementsError(
            f"the CodeArtifact index of {REPOSITORY_VARIABLE}={arn} cannot be had: {cause}; "
            "expected arn:PARTITION:codeartifact:REGION:ACCOUNT:repository/DOMAIN/NAME, and a role "
            "that may codeartifact:GetAuthorizationToken, codeartifact:GetRepositoryEndpoint and "
            "sts:GetServiceBearerToken: correct it, or remove the variable to use pip's own index"
        ) from error
