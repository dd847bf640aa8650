"""Which of this process's variables an engine's process gets: those that it needs to run, and no secret.

Models bring code of their own (a bundle's transforms, the operators of a runtime), and images are hostile. What the
node or its operator keeps in the environment (settings, passwords of databases and proxies, keys of a cloud) stays
here, so variables are named that pass rather than those that do not.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inference.card import Card

__all__ = ["environment_of"]

_PASSED = frozenset(
    (
        *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "XDG_CACHE_HOME"),
        *("LD_LIBRARY_PATH", "LD_PRELOAD", "GLIBC_TUNABLES", "VIRTUAL_ENV", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    )
)
#: What tunes Python, the C library's memory and the runtimes.
_KINDS = re.compile(
    r"(?:LC|PYTHON\w*|MALLOC|OMP|GOMP|KMP|MKL|DNNL|ONEDNN|OPENBLAS|ORT|OV|OPENVINO|CUDA|CUDNN|CUBLAS|NVIDIA|NCCL|TORCH\w*"
    r"|PYTORCH|ATEN|ENGINE)(?:_\w+)?"
)
#: NVIDIA_API_KEY is not for a model, whatever it begins with.
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|PWD|CREDENTIAL|AUTH|PROXY|URL|URI|DSN")


def environment_of(card: Card) -> dict[str, str]:
    """Return the variables of this process that the card's engine gets, with those that the card itself names.

    A card names the token of its server (``kserve.token_environment``) and what its program gets
    (``command.pass_environment``); never a setting of the node, which no card may name.
    """
    named: set[str] = set()
    if card.kserve is not None and card.kserve.token_environment is not None:
        named.add(card.kserve.token_environment)
    if card.command is not None:
        named |= set(card.command.pass_environment)
    return {name: value for name, value in os.environ.items() if name in named or _is_passed(name)}


def _is_passed(name: str) -> bool:
    return name in _PASSED or (_KINDS.fullmatch(name) is not None and _SECRET.search(name) is None)
