"""The targets, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tests.fuzz import codec_target, frames_target, session_target
from tests.fuzz.target import Target

TARGETS: Final[Mapping[str, Target]] = {
    target.name: target
    for target in (frames_target.TARGET, codec_target.TARGET, session_target.TARGET)
}
